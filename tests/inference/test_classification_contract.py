"""What every engine promises of classifications. The reference is transformers' own models for
sequence classification with the same weights."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from fixtures.lora_models import disturb
from transformers import AutoModelForSequenceClassification

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.errors import CapacityError, EngineError, InvalidInputError, NotSupportedError
from luthier.inference.base import (
    ClassificationRequest,
    Engine,
    FinishReason,
    GenerationRequest,
)
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel

ENGINES: dict[str, Callable[..., Engine]] = {"plain": PlainEngine, "batched": BatchedEngine}
TEXTS = ("hello world", "Win a prize now, call 09061701461!", "See you at seven.", "日本 🙂")
MakeEngine = Callable[..., Engine]


@pytest.fixture(params=ENGINES)
def make_engine(request: pytest.FixtureRequest) -> Iterator[MakeEngine]:
    """Makes engines of each sort, and closes them."""
    made: list[Engine] = []

    def make(base_model: BaseModel, **options: int) -> Engine:
        made.append(ENGINES[request.param](base_model, EngineOptions(**options)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make_engine: MakeEngine, causal_base: BaseModel) -> Engine:
    return make_engine(causal_base)


@pytest.fixture
def lora(causal_base: BaseModel) -> Adapter:
    adapter = create_lora(causal_base.model, LoraConfig(rank=4, use_dora=True), seed=3)
    disturb(adapter, seed=3)
    return adapter


def random_head(base_model: BaseModel, *, num_classes: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_classes, base_model.hidden_size, generator=generator)


def ids_of(base_model: BaseModel, text: str) -> tuple[int, ...]:
    return tuple(base_model.tokenizer(text)["input_ids"])


def scores_of(engine: Engine, request: ClassificationRequest) -> tuple[float, ...]:
    (chunk,) = engine.submit(request)
    return chunk.scores


def by_transformers(
    base_model: BaseModel, head: torch.Tensor, text: str, adapter: Adapter | None = None
) -> list[float]:
    """Scores of transformers' classifier with the base's (tuned) layers and this head."""
    config = type(base_model.model.config).from_dict(base_model.model.config.to_dict())
    config.num_labels, config.pad_token_id = len(head), 0
    model = AutoModelForSequenceClassification.from_config(config).eval()
    tuned = base_model.model if adapter is None else adapter.tuned_model(base_model.model)
    model.model = tuned.model
    model.score.weight.data = head
    with torch.no_grad():
        logits = model(torch.tensor([ids_of(base_model, text)])).logits
    scores: list[float] = logits[0].tolist()
    return scores


def test_scores_are_those_of_transformers(engine: Engine, causal_base: BaseModel) -> None:
    head = random_head(causal_base)
    for text in TEXTS:
        request = ClassificationRequest(ids_of(causal_base, text), head)
        expected = by_transformers(causal_base, head, text)
        assert scores_of(engine, request) == pytest.approx(expected, abs=1e-4)


def test_scores_with_a_lora_are_those_of_transformers(
    engine: Engine, causal_base: BaseModel, lora: Adapter
) -> None:
    head = random_head(causal_base)
    for text in TEXTS:
        request = ClassificationRequest(ids_of(causal_base, text), head, lora)
        expected = by_transformers(causal_base, head, text, lora)
        assert expected != pytest.approx(by_transformers(causal_base, head, text), abs=1e-2)
        assert scores_of(engine, request) == pytest.approx(expected, abs=1e-4)


def test_a_classification_is_one_chunk_without_text(engine: Engine, causal_base: BaseModel) -> None:
    ids = ids_of(causal_base, TEXTS[0])
    chunks = list(engine.submit(ClassificationRequest(ids, random_head(causal_base))))
    (chunk,) = chunks
    assert (chunk.text, chunk.tokens, chunk.generated_token_count) == ("", (), 0)
    assert chunk.input_token_count == len(ids)
    assert chunk.finish_reason is FinishReason.MAX_TOKENS


def test_scores_come_to_an_event_loop_too(engine: Engine, causal_base: BaseModel) -> None:
    request = ClassificationRequest(ids_of(causal_base, TEXTS[0]), random_head(causal_base))

    async def read() -> list[tuple[float, ...]]:
        return [chunk.scores async for chunk in engine.submit(request)]

    assert asyncio.run(read()) == [scores_of(engine, request)]


def test_a_text_as_long_as_the_context_is_classified_and_one_token_more_refused(
    make_engine: MakeEngine, causal_base: BaseModel
) -> None:
    short = dataclasses.replace(causal_base, max_positions=9)
    engine, head = make_engine(short), random_head(causal_base)
    ids = tuple(range(5, 14))
    expected = scores_of(make_engine(causal_base), ClassificationRequest(ids, head))
    assert scores_of(engine, ClassificationRequest(ids, head)) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InvalidInputError, match="10 tokens; the model's context holds 9"):
        engine.submit(ClassificationRequest((*ids, 5), head))


@pytest.mark.parametrize(
    "head", [torch.zeros(3, 7), torch.zeros(7), torch.zeros(0, 64), torch.zeros(3, 64).long()]
)
def test_a_head_that_does_not_fit_is_refused(
    engine: Engine, causal_base: BaseModel, head: torch.Tensor
) -> None:
    with pytest.raises(InvalidInputError, match=rf"\[classes, {causal_base.hidden_size}\]"):
        engine.submit(ClassificationRequest((5, 6), head))


def test_a_head_on_an_encoder_decoder_is_refused(
    make_engine: MakeEngine, seq2seq_base: BaseModel
) -> None:
    with pytest.raises(NotSupportedError, match="causal"):
        make_engine(seq2seq_base).submit(ClassificationRequest((5, 6), random_head(seq2seq_base)))


def test_a_broken_head_ends_its_own_row_only(engine: Engine, causal_base: BaseModel) -> None:
    head, ids = random_head(causal_base), ids_of(causal_base, TEXTS[1])
    broken = head.clone()
    broken[1, 2] = float("nan")
    streams = [engine.submit(ClassificationRequest(ids, each)) for each in (head, broken, head)]
    (first,) = streams[0]
    with pytest.raises(EngineError, match="1 of 3 scores that are not finite"):
        list(streams[1])
    (last,) = streams[2]
    assert last.scores == pytest.approx(first.scores, abs=1e-5)
    assert engine.status().is_healthy


def test_a_broken_adapter_ends_its_own_row_and_leaves_no_keys_behind(
    engine: Engine, causal_base: BaseModel, lora: Adapter
) -> None:
    head, ids = random_head(causal_base), ids_of(causal_base, TEXTS[1] * 4)
    expected = by_transformers(causal_base, head, TEXTS[1] * 4)
    with torch.no_grad():
        next(iter(lora.named_parameters()))[1].fill_(float("nan"))
    broken = engine.submit(ClassificationRequest(ids, head, lora))
    with pytest.raises(EngineError, match="not finite"):
        list(broken)
    scores = scores_of(engine, ClassificationRequest(ids, head))
    assert scores == pytest.approx(expected, abs=1e-4)


def test_a_full_queue_refuses_classifications(
    make_engine: MakeEngine, causal_base: BaseModel
) -> None:
    engine = make_engine(causal_base, max_waiting=0)
    with pytest.raises(CapacityError):
        engine.submit(ClassificationRequest((5, 6), random_head(causal_base)))


def test_requests_and_answers_can_be_sent_to_another_process(
    engine: Engine, causal_base: BaseModel
) -> None:
    request = ClassificationRequest(ids_of(causal_base, TEXTS[0]), random_head(causal_base))
    sent = pickle.loads(pickle.dumps(request))
    (chunk,) = engine.submit(sent)
    assert pickle.loads(pickle.dumps(chunk)) == chunk
    assert chunk.scores == pytest.approx(scores_of(engine, request), abs=1e-6)


def test_heads_soft_prompts_loras_and_the_base_share_a_batch(
    engine: Engine, causal_base: BaseModel, lora: Adapter, make_prompt: Callable[..., Adapter]
) -> None:
    soft_prompt = make_prompt(causal_base, seed=1)
    head = random_head(causal_base)
    requests: list[ClassificationRequest | GenerationRequest] = []
    for number, text in enumerate(TEXTS):
        ids = ids_of(causal_base, text * 5)
        for adapter in (None, lora, soft_prompt):
            requests.append(GenerationRequest(ids, SamplingParams(max_new_tokens=9), adapter))
            other_head = random_head(causal_base, num_classes=2 + number, seed=number)
            requests.append(ClassificationRequest(ids, other_head, adapter))
            requests.append(ClassificationRequest(ids, head, adapter))
    alone = [list(engine.submit(request)) for request in requests]
    streams = [engine.submit(request) for request in requests]
    for expected, stream in zip(alone, streams, strict=True):
        got = list(stream)
        assert [c.tokens for c in got] == [c.tokens for c in expected]
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)


def test_a_long_text_is_read_in_pieces(
    make_engine: MakeEngine, causal_base: BaseModel, lora: Adapter
) -> None:
    engine = make_engine(causal_base, max_step_tokens=8, max_running=4, num_threads=1)
    head, text = random_head(causal_base), " ".join(TEXTS * 6)
    for adapter in (None, lora):
        expected = by_transformers(causal_base, head, text, adapter)
        for _ in range(2):  # the second time from what the first one left
            request = ClassificationRequest(ids_of(causal_base, text), head, adapter)
            assert scores_of(engine, request) == pytest.approx(expected, abs=1e-4)


def test_a_classification_that_is_cancelled_ends_and_frees_its_place(
    make_engine: MakeEngine, causal_base: BaseModel
) -> None:
    engine = make_engine(causal_base, max_running=1, num_threads=1)
    head = random_head(causal_base)
    streams = [engine.submit(ClassificationRequest((5, 6, 7), head)) for _ in range(8)]
    for stream in streams[1::2]:
        stream.cancel()
    for stream in streams[::2]:
        (chunk,) = stream
        assert len(chunk.scores) == 3
    for stream in streams[1::2]:
        (chunk,) = stream
        is_cancelled = chunk.finish_reason is FinishReason.CANCELLED
        assert len(chunk.scores) == (0 if is_cancelled else 3)
    assert engine.status().num_waiting == 0
