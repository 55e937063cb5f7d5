"""What every engine promises. The reference is transformers' ``generate`` and ``forward``."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixtures.process_engines import close_process_engines, process_engine
from fixtures.refusing_model import DEADLY_ID, POISON_ID, refusing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
)

from luthier.adapters.base import Adapter
from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.errors import CapacityError, EngineError, InvalidInputError, NotSupportedError
from luthier.inference.base import (
    Engine,
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    TokenStream,
)
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel

ENGINES: dict[str, Callable[..., Engine]] = {
    "plain": PlainEngine,
    "batched": BatchedEngine,
    "process": process_engine,
}
#: Each engine of its own options is a process of its own, which takes seconds to start.
ALL_ENGINES = ["plain", "batched", pytest.param("process", marks=pytest.mark.slow)]
PROMPTS = (
    "hello world",
    "Tweet text : @foo what a cute dog! Label :",
    "The screen stays black when I press the button.",
    "日本 and emoji 🙂",
)
MakePrompt = Callable[..., Adapter]


@pytest.fixture(scope="module", autouse=True)
def _no_process_left() -> Iterator[None]:
    yield
    close_process_engines()


def made_engines(sort: str) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(base_model: BaseModel, **options: int) -> Engine:
        try:
            engine = ENGINES[sort](base_model, EngineOptions(**options))
        except NotSupportedError as error:
            pytest.skip(str(error))
        if sort != "process":
            made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(params=ALL_ENGINES)
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine]]:
    """Makes engines of each sort, and closes them."""
    yield from made_engines(request.param)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, base_model: BaseModel) -> Iterator[Engine]:
    """An engine of each sort with default options."""
    for make in made_engines(request.param):
        yield make(base_model)


def ids_of(base_model: BaseModel, text: str) -> tuple[int, ...]:
    return tuple(base_model.tokenizer(text)["input_ids"])


def ask(
    base_model: BaseModel, text: str, *, adapter: Adapter | None = None, **sampling: Any
) -> GenerationRequest:
    sampling = {"max_new_tokens": 12, **sampling}
    return GenerationRequest(ids_of(base_model, text), SamplingParams(**sampling), adapter)


def tokens_in(chunks: list[GenerationChunk]) -> list[int]:
    return [token.token_id for chunk in chunks for token in chunk.tokens]


def text_in(chunks: list[GenerationChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def generated_by_transformers(
    base_model: BaseModel, input_ids: tuple[int, ...], **arguments: Any
) -> list[int]:
    """Greedy ``generate`` of one row; the prompt and the decoder's start are cut off."""
    output = base_model.model.generate(
        torch.tensor([input_ids]),
        attention_mask=torch.ones(1, len(input_ids), dtype=torch.long),
        **{"do_sample": False, "max_new_tokens": 24, **arguments},
    )[0].tolist()
    return output[len(input_ids) :] if base_model.kind == "causal" else output[1:]


def all_logits(
    base_model: BaseModel,
    input_ids: tuple[int, ...],
    generated: list[int],
    adapter: Adapter | None = None,
) -> torch.Tensor:
    """Logits of the sequence in one pass without any cache; causal: [P + T + N, V], else [N, V]."""
    embed = base_model.model.get_input_embeddings()
    prompt = adapter.soft_prompt() if adapter else None

    def embedded(ids: list[int], virtual: torch.Tensor | None) -> torch.Tensor:
        rows = embed(torch.tensor(ids, dtype=torch.long))
        return (rows if virtual is None else torch.cat([virtual, rows]))[None]

    decoder_prompt = prompt.decoder if prompt else None
    if base_model.kind == "causal":
        inputs = embedded([*input_ids, *generated], decoder_prompt)
        return base_model.model(inputs_embeds=inputs).logits[0]
    start = base_model.model.config.decoder_start_token_id
    return base_model.model(
        inputs_embeds=embedded(list(input_ids), prompt.encoder if prompt else None),
        decoder_inputs_embeds=embedded([start, *generated], decoder_prompt),
    ).logits[0]


def greedy_without_cache(
    base_model: BaseModel, input_ids: tuple[int, ...], adapter: Adapter | None, num_tokens: int
) -> list[int]:
    generated: list[int] = []
    while len(generated) < num_tokens and base_model.eos_token_ids[0] not in generated:
        logits = all_logits(base_model, input_ids, generated, adapter)
        generated.append(int(logits[-1].argmax()))
    return generated


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"repetition_penalty": 1.5},
        {"min_new_tokens": 20},
        {"exponential_decay_length_penalty": (4, 1.6)},
        {"no_repeat_ngram_size": 2},
        {
            "repetition_penalty": 0.7,
            "min_new_tokens": 6,
            "exponential_decay_length_penalty": (2, 1.3),
        },
    ],
    ids=lambda sampling: ",".join(sampling) or "plain",
)
def test_greedy_equals_transformers_generate(
    engine: Engine, base_model: BaseModel, text: str, sampling: dict[str, Any]
) -> None:
    request = ask(base_model, text, max_new_tokens=24, **sampling)
    chunks = list(engine.submit(request))
    assert tokens_in(chunks) == generated_by_transformers(base_model, request.input_ids, **sampling)


@pytest.mark.parametrize("text", PROMPTS[1:3])
@pytest.mark.parametrize(
    "sampling",
    [
        {"num_beams": 2},
        {"num_beams": 4},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 3, "length_penalty": -1.0},
        {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
        {"num_beams": 4, "min_new_tokens": 9, "exponential_decay_length_penalty": (9, 1.4)},
    ],
    ids=str,
)
def test_beams_equal_transformers_generate(
    engine: Engine, base_model: BaseModel, text: str, sampling: dict[str, Any]
) -> None:
    request = ask(base_model, text, max_new_tokens=20, **sampling)
    chunks = list(engine.submit(request))
    arguments = {"max_new_tokens": 20, **sampling}
    expected = generated_by_transformers(base_model, request.input_ids, **arguments)
    assert tokens_in(chunks) == expected
    assert text_in(chunks) == base_model.tokenizer.decode(expected, skip_special_tokens=True)
    has_ended = expected[-1] in base_model.eos_token_ids
    reason = FinishReason.EOS_TOKEN if has_ended else FinishReason.MAX_TOKENS
    assert chunks[-1].finish_reason is reason


def test_a_stop_sequence_ends_the_text_that_beams_found(
    engine: Engine, base_model: BaseModel
) -> None:
    beams = {"num_beams": 3, "max_new_tokens": 30, "min_new_tokens": 25}
    free = list(engine.submit(ask(base_model, "hello world", token_logprobs=True, **beams)))
    assert all(token.logprob is not None for chunk in free for token in chunk.tokens)
    stop = stop_across_tokens(free)
    request = ask(base_model, "hello world", stop_sequences=(stop,), **beams)
    chunks = list(engine.submit(request))
    assert text_in(chunks) == text_in(free)[: text_in(free).index(stop)] + stop
    assert chunks[-1].finish_reason is FinishReason.STOP_SEQUENCE


def test_beams_obey_time_and_cancel(
    make_engine: Callable[..., Engine], base_model: BaseModel
) -> None:
    engine = make_engine(replace(base_model, max_positions=None))
    endless = {"num_beams": 2, "max_new_tokens": 10**5, "min_new_tokens": 10**5}
    chunks = list(engine.submit(ask(base_model, "hello", max_time=0.1, **endless)))
    assert chunks[-1].finish_reason is FinishReason.TIME_LIMIT
    stream = engine.submit(ask(base_model, "hello", **endless))
    stream.cancel()
    assert list(stream)[-1].finish_reason is FinishReason.CANCELLED


def bart_with(base_model: BaseModel, **generation: Any) -> BaseModel:
    """A tiny BART-type model that has the generation config of its family, changed as given."""
    torch.manual_seed(4)
    config = BartConfig(
        vocab_size=400,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=256,
        init_std=0.4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        decoder_start_token_id=1,
    )
    model = BartForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = 2
    model.generation_config.forced_eos_token_id = 1
    model.generation_config.no_repeat_ngram_size = 3
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    return BaseModel.from_memory(model, base_model.tokenizer, name="tiny-bart")


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"min_length": 12, "length_penalty": 2.0, "early_stopping": True, "num_beams": 4},
        {"repetition_penalty": 1.3, "encoder_no_repeat_ngram_size": 2},
        {"suppress_tokens": [20, 30, 66], "begin_suppress_tokens": [2, 5], "min_length": 5},
        {"forced_bos_token_id": None, "bad_words_ids": [[40], [99, 100]]},
    ],
    ids=lambda generation: ",".join(generation) or "BART's own",
)
def test_a_models_generation_config_applies_as_in_transformers(
    make_engine: Callable[..., Engine],
    causal_base: BaseModel,
    generation: dict[str, Any],
    num_beams: int,
) -> None:
    bart = bart_with(causal_base, **generation)
    engine = make_engine(bart)
    for text in PROMPTS[:2]:
        request = ask(bart, text, max_new_tokens=16, num_beams=num_beams)
        arguments = {"max_new_tokens": 16, "num_beams": num_beams}
        expected = generated_by_transformers(bart, request.input_ids, **arguments)
        assert len(set(expected)) > 3
        assert tokens_in(list(engine.submit(request))) == expected


def test_a_bloom_type_model_equals_transformers_generate(
    make_engine: Callable[..., Engine], causal_base: BaseModel
) -> None:
    config = BloomConfig(
        vocab_size=400,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = BloomForCausalLM(config)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    bloom = BaseModel.from_memory(model, causal_base.tokenizer, name="tiny-bloom")
    engine = make_engine(bloom)
    for text in PROMPTS:
        request = ask(bloom, text, max_new_tokens=24)
        expected = generated_by_transformers(bloom, request.input_ids)
        assert len(set(expected)) > 3
        assert tokens_in(list(engine.submit(request))) == expected


@pytest.mark.parametrize("parts", ["decoder", "encoder", "both"])
def test_soft_prompts_equal_a_forward_pass_without_cache(
    engine: Engine, base_model: BaseModel, make_prompt: MakePrompt, parts: str
) -> None:
    if base_model.kind == "causal" and parts != "decoder":
        pytest.skip("a causal model has no encoder")
    for seed in range(3):
        adapter = make_prompt(base_model, seed=seed, parts=parts)
        request = ask(base_model, "hello world", adapter=adapter)
        got = tokens_in(list(engine.submit(request)))
        assert got == greedy_without_cache(base_model, request.input_ids, adapter, 12)


def test_a_soft_prompt_changes_the_answer(
    engine: Engine, base_model: BaseModel, make_prompt: MakePrompt
) -> None:
    answers = {
        tuple(tokens_in(list(engine.submit(ask(base_model, "hello", adapter=adapter)))))
        for adapter in (None, make_prompt(base_model, seed=1), make_prompt(base_model, seed=2))
    }
    assert len(answers) == 3


@pytest.mark.parametrize("text", PROMPTS)
def test_text_is_what_the_tokenizer_decodes(
    engine: Engine, base_model: BaseModel, text: str
) -> None:
    chunks = list(engine.submit(ask(base_model, text, max_new_tokens=60)))
    expected = base_model.tokenizer.decode(tokens_in(chunks), skip_special_tokens=True)
    assert text_in(chunks) == expected
    assert len(chunks) == len(tokens_in(chunks)), "one chunk for each token"


def test_counts_reasons_and_the_order_of_chunks(engine: Engine, base_model: BaseModel) -> None:
    request = ask(base_model, "hello world", max_new_tokens=5)
    chunks = list(engine.submit(request))
    assert [chunk.generated_token_count for chunk in chunks] == [1, 2, 3, 4, 5]
    assert {chunk.input_token_count for chunk in chunks} == {len(request.input_ids)}
    assert [chunk.is_last for chunk in chunks] == [False] * 4 + [True]
    assert chunks[-1].finish_reason is FinishReason.MAX_TOKENS
    assert {chunk.seed for chunk in chunks} == {None}
    assert all(chunk.input_tokens == () for chunk in chunks)


def test_end_of_sequence_ends_and_is_counted_but_not_shown(
    engine: Engine, base_model: BaseModel
) -> None:
    request = ask(base_model, "hello", exponential_decay_length_penalty=(2, 50.0))
    chunks = list(engine.submit(request))
    assert chunks[-1].finish_reason is FinishReason.EOS_TOKEN
    assert tokens_in(chunks)[-1] in base_model.eos_token_ids
    assert chunks[-1].generated_token_count == len(tokens_in(chunks)) < 12
    assert "</s>" not in text_in(chunks)


def stop_across_tokens(chunks: list[GenerationChunk]) -> str:
    """Four characters of the text that begin inside one token and end inside a later one."""
    text = text_in(chunks)
    middle = len(text) // 2
    return text[middle : middle + 4]


@pytest.mark.parametrize("include", [None, True, False])
def test_a_stop_sequence_across_token_borders_ends_the_text(
    engine: Engine, base_model: BaseModel, include: bool | None
) -> None:
    free = list(engine.submit(ask(base_model, "hello world", max_new_tokens=40)))
    stop = stop_across_tokens(free)
    request = ask(
        base_model,
        "hello world",
        max_new_tokens=40,
        stop_sequences=("never seen", stop),
        include_stop_sequence=include,
    )
    chunks = list(engine.submit(request))
    before = text_in(free)[: text_in(free).index(stop)]
    assert text_in(chunks) == (before if include is False else before + stop)
    assert chunks[-1].finish_reason is FinishReason.STOP_SEQUENCE
    assert tokens_in(chunks) == tokens_in(free)[: len(chunks)]
    assert len(chunks) < len(free)


def test_a_stop_sequence_in_the_prompt_stops_nothing(engine: Engine, base_model: BaseModel) -> None:
    free = list(engine.submit(ask(base_model, "hello world")))
    stopped = list(engine.submit(ask(base_model, "hello world", stop_sequences=("hello",))))
    assert stopped == free


def test_generated_logprobs_and_ranks_are_those_of_the_raw_logits(
    engine: Engine, base_model: BaseModel, make_prompt: MakePrompt
) -> None:
    adapter = make_prompt(base_model, seed=1)
    request = ask(
        base_model,
        "hello world",
        adapter=adapter,
        repetition_penalty=2.0,
        token_logprobs=True,
        token_ranks=True,
    )
    tokens = [token for chunk in engine.submit(request) for token in chunk.tokens]
    ids = [token.token_id for token in tokens]
    logits = all_logits(base_model, request.input_ids, ids, adapter)[-len(ids) - 1 : -1]
    expected = logits.log_softmax(-1)[range(len(ids)), ids]
    torch.testing.assert_close(torch.tensor([token.logprob for token in tokens]), expected)
    places = [
        int((row > row[token_id]).sum()) + 1 for row, token_id in zip(logits, ids, strict=True)
    ]
    assert [token.rank for token in tokens] == places
    assert max(places) > 1, "the penalty must have moved a choice for this to mean anything"
    assert [token.text for token in tokens] == base_model.tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("with_prompt", [False, True])
def test_input_tokens_have_logprobs_where_a_model_gives_them(
    engine: Engine, base_model: BaseModel, make_prompt: MakePrompt, with_prompt: bool
) -> None:
    adapter = make_prompt(base_model, seed=1) if with_prompt else None
    request = ask(
        base_model,
        "hello world, hello moon",
        adapter=adapter,
        input_tokens=True,
        token_logprobs=True,
        token_ranks=True,
    )
    first, *rest = engine.submit(request)
    assert [token.token_id for token in first.input_tokens] == list(request.input_ids)
    assert all(chunk.input_tokens == () for chunk in rest)
    measured = [(token.logprob, token.rank) for token in first.input_tokens]
    assert measured[0] == (None, None)
    if base_model.kind == "seq2seq":
        assert set(measured) == {(None, None)}
        return
    num_ids = len(request.input_ids)
    logits = all_logits(base_model, request.input_ids, [], adapter)[-num_ids:-1]
    ids = list(request.input_ids[1:])
    expected = logits.log_softmax(-1)[range(len(ids)), ids]
    torch.testing.assert_close(torch.tensor([pair[0] for pair in measured[1:]]), expected)
    assert [pair[1] for pair in measured[1:]] == [
        int((row > row[token_id]).sum()) + 1 for row, token_id in zip(logits, ids, strict=True)
    ]


def test_reports_carry_only_what_was_asked_for(engine: Engine, base_model: BaseModel) -> None:
    first = next(iter(engine.submit(ask(base_model, "hello", token_ranks=True))))
    assert first.tokens[0].rank == 1
    assert first.tokens[0].logprob is None


def test_a_seed_repeats_a_sample_and_a_drawn_seed_is_reported(
    engine: Engine, base_model: BaseModel
) -> None:
    request = ask(base_model, "hello world", decoding_method=SAMPLING, temperature=1.5)
    free = list(engine.submit(request))
    seed = free[-1].seed
    assert seed is not None
    again = replace(request, sampling=replace(request.sampling, seed=seed))
    torch.rand(3)
    assert list(engine.submit(again)) == free
    other = replace(request, sampling=replace(request.sampling, seed=seed + 1))
    assert tokens_in(list(engine.submit(other))) != tokens_in(free)


def test_a_seeded_row_gives_the_same_text_whatever_else_is_in_the_batch(
    engine: Engine, base_model: BaseModel
) -> None:
    ways: list[dict[str, Any]] = [
        {"temperature": 1.3},
        {"top_k": 40, "top_p": 0.95},
        {"min_p": 0.02, "repetition_penalty": 1.2},
        {"typical_p": 0.9, "temperature": 0.8},
    ]
    requests = [
        ask(base_model, text, decoding_method=SAMPLING, seed=seed, max_new_tokens=16, **way)
        for seed, (text, way) in enumerate(zip(PROMPTS, ways, strict=True))
    ]
    alone = [list(engine.submit(request)) for request in requests]
    neighbours = [ask(base_model, text, max_new_tokens=9) for text in PROMPTS]
    mixed = [request for pair in zip(neighbours, requests, strict=True) for request in pair]
    for order in (mixed, mixed[::-1], requests * 2):
        streams = [(request, engine.submit(request)) for request in order]
        for request, stream in streams:
            chunks = list(stream)
            if request in requests:
                assert chunks == alone[requests.index(request)]


def test_time_limit_ends_a_row_and_says_so(
    make_engine: Callable[..., Engine], base_model: BaseModel
) -> None:
    engine = make_engine(replace(base_model, max_positions=None))
    endless = ask(base_model, "hello", max_new_tokens=10**5, min_new_tokens=10**5, max_time=0.15)
    started = time.monotonic()
    chunks = list(engine.submit(endless))
    assert 0.15 <= time.monotonic() - started < 5
    assert chunks[-1].finish_reason is FinishReason.TIME_LIMIT
    assert len(tokens_in(chunks)) >= 1


def test_a_full_context_ends_with_token_limit(
    make_engine: Callable[..., Engine], base_model: BaseModel, make_prompt: MakePrompt
) -> None:
    small = replace(base_model, max_positions=20)
    adapter = make_prompt(small, seed=1, num_virtual_tokens=5)
    request = ask(small, "hello world", adapter=adapter, max_new_tokens=100, min_new_tokens=50)
    chunks = list(make_engine(small).submit(request))
    num_before = 5 + len(request.input_ids) if small.kind == "causal" else 1
    assert chunks[-1].finish_reason is FinishReason.TOKEN_LIMIT
    assert len(tokens_in(chunks)) == 20 - num_before


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(
    make_engine: Callable[..., Engine], base_model: BaseModel, make_prompt: MakePrompt
) -> None:
    small = replace(base_model, max_positions=12)
    engine = make_engine(small)
    long = GenerationRequest(tuple(range(5, 18)), SamplingParams())
    with pytest.raises(InvalidInputError, match=r"13 tokens.* context of 12 tokens"):
        engine.submit(long)
    tuned = GenerationRequest(
        tuple(range(5, 14)), SamplingParams(), make_prompt(small, seed=1, num_virtual_tokens=4)
    )
    with pytest.raises(InvalidInputError, match=r"9 tokens and 4 virtual tokens"):
        engine.submit(tuned)


def test_an_empty_prompt_starts_from_virtual_tokens_or_the_beginning_token(
    engine: Engine, base_model: BaseModel, make_prompt: MakePrompt
) -> None:
    sampling = SamplingParams(max_new_tokens=6, input_tokens=True, token_logprobs=True)
    adapter = make_prompt(base_model, seed=1)
    chunks = list(engine.submit(GenerationRequest((), sampling, adapter)))
    assert tokens_in(chunks) == greedy_without_cache(base_model, (), adapter, 6)
    assert chunks[0].input_token_count == 0
    bos = (base_model.tokenizer.bos_token_id,)
    chunks = list(engine.submit(GenerationRequest((), sampling)))
    assert tokens_in(chunks) == greedy_without_cache(base_model, bos, None, 6)
    assert chunks[0].input_token_count == 1


def test_ids_outside_the_vocabulary_are_refused(engine: Engine) -> None:
    for bad in (-1, 400, 2**40):
        with pytest.raises(InvalidInputError, match=rf"input_ids\[1\].* {bad}$"):
            engine.submit(GenerationRequest((5, bad), SamplingParams()))


def mixed_requests(base_model: BaseModel, make_prompt: MakePrompt) -> list[GenerationRequest]:
    """Ten kinds of request: base and tuned, long and short, greedy and sampled."""
    adapters = [None, *(make_prompt(base_model, seed=s, num_virtual_tokens=3 + s) for s in (1, 2))]
    requests = []
    for index in range(10):
        sampling: dict[str, Any] = {"max_new_tokens": 4 + index}
        if index % 2:
            sampling |= {"decoding_method": SAMPLING, "seed": index, "top_p": 0.9}
        if index % 3 == 0:
            sampling |= {"repetition_penalty": 1.3, "min_new_tokens": 3, "token_logprobs": True}
        text = PROMPTS[index % len(PROMPTS)]
        requests.append(ask(base_model, text, adapter=adapters[index % 3], **sampling))
    return requests


def same(left: list[GenerationChunk], right: list[GenerationChunk]) -> bool:
    """Equal but for rounding: fp32 alone takes 8e-5 from this T5's log-probabilities."""
    return (
        tokens_in(left) == tokens_in(right)
        and [(c.text, c.finish_reason, c.seed) for c in left]
        == [(c.text, c.finish_reason, c.seed) for c in right]
        and all(
            a.logprob == pytest.approx(b.logprob, abs=1e-4)
            for one, other in zip(left, right, strict=True)
            for a, b in zip(one.tokens, other.tokens, strict=True)
        )
    )


def test_80_requests_at_8_threads_are_answered_as_if_alone(
    make_engine: Callable[..., Engine], base_model: BaseModel, make_prompt: MakePrompt
) -> None:
    engine = make_engine(base_model, num_threads=8)
    requests = mixed_requests(base_model, make_prompt)
    alone = [list(engine.submit(request)) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda index: list(engine.submit(requests[index % 10])), range(80)))
    wrong = [i for i, answer in enumerate(answers) if not same(answer, alone[i % 10])]
    assert wrong == []


async def test_many_streams_on_one_event_loop(
    engine: Engine, base_model: BaseModel, make_prompt: MakePrompt
) -> None:
    requests = mixed_requests(base_model, make_prompt)
    alone = [list(engine.submit(request)) for request in requests]
    num_threads = threading.active_count()

    async def read(stream: TokenStream) -> list[GenerationChunk]:
        return [chunk async for chunk in stream]

    reading = [asyncio.create_task(read(engine.submit(requests[i % 10]))) for i in range(40)]
    await asyncio.sleep(0.01)
    assert threading.active_count() == num_threads, "no thread waits for a stream"
    answers = await asyncio.gather(*reading)
    assert all(same(answer, alone[i % 10]) for i, answer in enumerate(answers))


def wait_until(is_true: Callable[[], bool], *, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def is_idle(engine: Engine) -> bool:
    status = engine.status()
    return status.num_running == 0 and status.num_waiting == 0


@pytest.mark.parametrize("num_read", [0, 1, 2, 5])
def test_cancel_at_any_step_ends_the_row_and_frees_it(
    engine: Engine, base_model: BaseModel, num_read: int
) -> None:
    request = ask(base_model, "hello", max_new_tokens=900, min_new_tokens=900)
    stream = engine.submit(request)
    chunks: list[GenerationChunk] = []
    for chunk in stream:
        chunks.append(chunk)
        if len(chunks) >= num_read and not chunk.is_last:
            stream.cancel()
            stream.cancel()
    if num_read == 0:
        stream.cancel()
    assert chunks[-1].finish_reason is FinishReason.CANCELLED
    assert chunks[-1].generated_token_count == len(tokens_in(chunks)) < 900
    assert [chunk.is_last for chunk in chunks].count(True) == 1
    wait_until(lambda: is_idle(engine))


def test_cancelling_a_waiting_row_ends_it_at_once(
    make_engine: Callable[..., Engine], base_model: BaseModel
) -> None:
    engine = make_engine(base_model, max_running=1, num_threads=1)
    request = ask(base_model, "hello", max_new_tokens=900, min_new_tokens=900)
    running = engine.submit(request)
    chunks = iter(running)
    next(chunks)
    waiting = engine.submit(request)
    assert engine.status().num_waiting == 1
    waiting.cancel()
    assert [chunk.finish_reason for chunk in waiting] == [FinishReason.CANCELLED]
    assert engine.status().num_waiting == 0
    running.cancel()


async def test_a_storm_of_disconnects_leaves_the_engine_idle_and_right(
    engine: Engine, base_model: BaseModel
) -> None:
    request = ask(base_model, "hello", max_new_tokens=300, min_new_tokens=300)
    small = ask(base_model, "hello world")
    alone = list(engine.submit(small))

    async def disconnect_after(num_chunks: int) -> None:
        stream = engine.submit(request)
        chunks = stream.__aiter__()
        for _ in range(num_chunks):
            await chunks.__anext__()
        await chunks.aclose()  # type: ignore[attr-defined]

    async def be_killed(delay: float) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_read_all(engine.submit(request)), timeout=delay)

    storm = [disconnect_after(index % 4) for index in range(30)]
    storm += [be_killed(0.01 * (index % 5)) for index in range(20)]
    for _ in range(100):
        engine.submit(request)  # dropped at once
    await asyncio.gather(*storm)
    gc.collect()
    wait_until(lambda: is_idle(engine))
    assert same(list(engine.submit(small)), alone)


async def _read_all(stream: TokenStream) -> list[GenerationChunk]:
    return [chunk async for chunk in stream]


def test_a_full_queue_refuses_and_recovers(
    make_engine: Callable[..., Engine], base_model: BaseModel
) -> None:
    engine = make_engine(base_model, max_running=1, num_threads=1, max_waiting=2)
    request = ask(base_model, "hello", max_new_tokens=900, min_new_tokens=900)
    running = engine.submit(request)
    chunks = iter(running)  # held: who drops it cancels the row
    next(chunks)
    waiting = [engine.submit(request) for _ in range(2)]
    with pytest.raises(CapacityError, match="at most 2 may") as refusal:
        engine.submit(request)
    assert refusal.value.retry_after_seconds >= 1
    for stream in (running, *waiting):
        stream.cancel()
    wait_until(lambda: is_idle(engine))
    assert list(engine.submit(ask(base_model, "hello")))[-1].is_last


def test_a_tenant_that_floods_is_refused_alone(
    make_engine: Callable[..., Engine], base_model: BaseModel
) -> None:
    engine = make_engine(base_model, max_running=1, num_threads=1, max_waiting_per_tenant=2)
    request = ask(base_model, "hello", max_new_tokens=900, min_new_tokens=900)
    flood = replace(request, tenant="flood")
    running = engine.submit(request)
    chunks = iter(running)  # held: who drops it cancels the row
    next(chunks)
    # The engine may take a waiting one in between, so that one more is accepted.
    waiting = []
    with pytest.raises(CapacityError, match="2 requests of tenant 'flood' wait"):
        for _ in range(6):
            waiting.append(engine.submit(flood))
    for tenant in ("", "other"):
        waiting.append(engine.submit(replace(request, tenant=tenant)))
    for stream in (running, *waiting):
        stream.cancel()
    wait_until(lambda: is_idle(engine))


def test_a_priority_beyond_the_limit_is_refused(engine: Engine, base_model: BaseModel) -> None:
    request = ask(base_model, "hello")
    with pytest.raises(InvalidInputError, match=r"'priority' must be in -10..10, got 11"):
        engine.submit(replace(request, priority=11))
    assert list(engine.submit(replace(request, priority=-10)))[-1].is_last


def test_a_broken_adapter_ends_its_own_row_only(
    engine: Engine, base_model: BaseModel, given_prompt: Any
) -> None:
    good = ask(base_model, "hello world", max_new_tokens=20)
    alone = list(engine.submit(good))
    part = {"causal": "decoder", "seq2seq": "encoder"}[base_model.kind]
    nan = torch.full((4, base_model.hidden_size), float("nan"))
    broken = ask(base_model, "hello", adapter=given_prompt(**{part: nan}))
    streams = [engine.submit(request) for request in (good, broken, good, broken, good)]
    for index in (1, 3):
        with pytest.raises(EngineError, match="no usable score"):
            list(streams[index])
    assert all(same(list(streams[index]), alone) for index in (0, 2, 4))
    wait_until(lambda: is_idle(engine))
    assert engine.status().is_healthy


def test_an_adapter_of_another_width_is_refused(
    engine: Engine, base_model: BaseModel, given_prompt: Any
) -> None:
    part = {"causal": "decoder", "seq2seq": "encoder"}[base_model.kind]
    wide = given_prompt(**{part: torch.zeros(4, base_model.hidden_size + 1)})
    with pytest.raises(InvalidInputError, match=r"shape \(4, 33\).* rows of 32 numbers"):
        engine.submit(ask(base_model, "hello", adapter=wide))


def test_a_row_whose_forward_pass_raises_ends_alone(
    make_engine: Callable[..., Engine], causal_base: BaseModel
) -> None:
    engine = make_engine(refusing(causal_base))
    good = ask(causal_base, "hello world", max_new_tokens=20)
    alone = list(engine.submit(good))
    bad = GenerationRequest((5, POISON_ID, 6), SamplingParams())
    streams = [engine.submit(request) for request in (good, bad, good, bad, good)]
    for index in (1, 3):
        with pytest.raises(EngineError, match="poisoned"):
            list(streams[index])
    assert all(same(list(streams[index]), alone) for index in (0, 2, 4))
    assert engine.status().is_healthy


def test_closing_ends_every_stream_and_refuses_new_ones(
    make_engine: Callable[..., Engine], base_model: BaseModel
) -> None:
    engine = make_engine(base_model, max_running=2, num_threads=2)
    request = ask(base_model, "hello", max_new_tokens=900, min_new_tokens=900)
    streams = [engine.submit(request) for _ in range(5)]
    engine.close()
    assert [list(stream)[-1].finish_reason for stream in streams] == [FinishReason.CANCELLED] * 5
    engine.close()
    assert not engine.status().is_healthy
    assert is_idle(engine)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(request)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_is_unhealthy_and_nobody_waits_for_it(
    make_engine: Callable[..., Engine], causal_base: BaseModel
) -> None:
    """SystemExit is no ordinary error of a row: it ends the thread it is raised in."""
    engine = make_engine(refusing(causal_base), max_running=1, num_threads=1)
    deadly = GenerationRequest((5, DEADLY_ID, 6), SamplingParams())
    streams = []
    for _ in range(3):
        try:
            streams.append(engine.submit(deadly))
        except EngineError:
            break
    for stream in streams:
        with pytest.raises(EngineError, match="the engine has stopped"):
            list(stream)
    wait_until(lambda: not engine.status().is_healthy)
    assert "SystemExit" in engine.status().detail
    with pytest.raises(EngineError, match="the engine has stopped"):
        engine.submit(ask(causal_base, "hello"))
