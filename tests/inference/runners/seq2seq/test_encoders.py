"""Models whose encoders read each row alone; the references are transformers and PEFT."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fixtures.lora_models import disturb
from transformers import (
    BigBirdPegasusConfig,
    BigBirdPegasusForConditionalGeneration,
    LEDConfig,
    LEDForConditionalGeneration,
    LongT5Config,
    LongT5ForConditionalGeneration,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PreTrainedModel,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.storage import save_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel

IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 2}


def t5_like(config_class: type, **changes: Any) -> Any:
    sizes = {"vocab_size": 400, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    return config_class(**sizes, num_layers=2, num_decoder_layers=2, **IDS, **changes)


def bart_like(config_class: type, **changes: Any) -> Any:
    sizes = {
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    return config_class(vocab_size=400, d_model=32, **sizes, **IDS, **changes)


def longt5(kind: str) -> PreTrainedModel:
    config = t5_like(
        LongT5Config,
        encoder_attention_type=kind,
        local_radius=4,
        global_block_size=4,
        tie_word_embeddings=False,
    )
    return LongT5ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "led": lambda: LEDForConditionalGeneration(bart_like(LEDConfig, attention_window=8)),
    "longt5, local": lambda: longt5("local"),
    "longt5, transient-global": lambda: longt5("transient-global"),
    "pegasus-x": lambda: PegasusXForConditionalGeneration(
        bart_like(PegasusXConfig, block_size=4, num_global_tokens=2, forced_eos_token_id=None)
    ),
    "bigbird-pegasus": lambda: BigBirdPegasusForConditionalGeneration(
        bart_like(BigBirdPegasusConfig, block_size=2, num_random_blocks=1)
    ),
    "nllb-moe": lambda: NllbMoeForConditionalGeneration(
        bart_like(
            NllbMoeConfig,
            num_experts=4,
            encoder_sparse_step=2,
            decoder_sparse_step=2,
        )
    ),
    "switch": lambda: SwitchTransformersForConditionalGeneration(
        t5_like(
            SwitchTransformersConfig,
            num_experts=4,
            expert_capacity=8,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
        )
    ),
}


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest, seq2seq_base: BaseModel) -> BaseModel:
    name = request.param
    return BaseModel.from_memory(make(name), seq2seq_base.tokenizer, name=name)


@pytest.fixture(scope="module")
def engine(base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(base, EngineOptions(max_step_tokens=60))
    yield engine
    engine.close()


def prompts_of(count: int) -> list[tuple[int, ...]]:
    """Of 2 to 40 tokens."""
    rng = random.Random(count)
    return [tuple(rng.randrange(5, 400) for _ in range(rng.randint(2, 40))) for _ in range(count)]


def generated(model: Any, ids: tuple[int, ...], **options: Any) -> list[int]:
    output: list[int] = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        **{"do_sample": False, "num_beams": 1, "pad_token_id": 0, "eos_token_id": 1, **options},
    )[0, 1:].tolist()
    return output


def answer_of(stream: Any) -> list[int]:
    return [token.token_id for chunk in stream for token in chunk.tokens]


def test_requests_of_any_length_at_once_equal_transformers_generate(
    base: BaseModel, engine: BatchedEngine
) -> None:
    prompts = sorted(prompts_of(14), key=len, reverse=True)
    beams = [1 + 2 * (n % 5 == 4) for n in range(len(prompts))]
    streams = [
        engine.submit(GenerationRequest(ids, SamplingParams(max_new_tokens=7, num_beams=width)))
        for ids, width in zip(prompts, beams, strict=True)
    ]
    answers = [answer_of(stream) for stream in streams]
    alone = make(base.name)  # the longest first: what BigBird reads changes it for good
    for ids, width, answer in zip(prompts, beams, answers, strict=True):
        assert answer == generated(alone, ids, max_new_tokens=7, num_beams=width)
    assert len({tuple(answer) for answer in answers}) > 4


def test_soft_prompts_on_either_side_share_the_batch(
    base: BaseModel, engine: BatchedEngine, make_prompt: Callable[..., Adapter]
) -> None:
    """Each row gives what it gives alone in the engine that runs one row at a time."""
    adapters = [None, *(make_prompt(base, seed=2, parts=p) for p in ("encoder", "decoder", "both"))]
    requests = [
        GenerationRequest(ids, SamplingParams(max_new_tokens=6), adapters[n % 4])
        for n, ids in enumerate(sorted(prompts_of(9), key=len, reverse=True))
    ]
    streams = [engine.submit(request) for request in requests]
    answers = [answer_of(stream) for stream in streams]
    assert engine._whole_models is None
    alone = BaseModel.from_memory(make(base.name), base.tokenizer, name="alone")
    plain = PlainEngine(alone)
    for request, answer in zip(requests, answers, strict=True):
        assert answer == answer_of(plain.submit(request))
    plain.close()


def test_rows_with_loras_give_what_peft_gives(
    base: BaseModel, engine: BatchedEngine, tmp_path: Path
) -> None:
    # A decoder's experts see some tokens only, so their deltas cannot be in the batch.
    attention = {"nllb-moe": ("q_proj", "v_proj"), "switch": ("q", "v")}.get(base.name)
    targets = {"target_modules": attention} if attention else {}
    adapters: list[LoraAdapter | None] = [None]
    tuned: list[Any] = [make(base.name)]
    for use_dora in (False, True):
        config = LoraConfig(rank=4, use_dora=use_dora, **targets)
        adapter = create_lora(base.model, config, seed=1 + use_dora)
        disturb(adapter, seed=1 + use_dora, by=0.1)
        save_adapter(adapter, tmp_path / str(use_dora), base_model_name=base.name)
        folder = str(tmp_path / str(use_dora))
        tuned.append(peft.PeftModel.from_pretrained(make(base.name), folder).eval())
        adapters.append(adapter)
    prompts = sorted(prompts_of(9), key=len, reverse=True)  # what BigBird reads changes it for good
    sampling = SamplingParams(max_new_tokens=5)
    streams = [
        engine.submit(GenerationRequest(ids, sampling, adapters[n % 3]))
        for n, ids in enumerate(prompts)
    ]
    answers = [answer_of(stream) for stream in streams]
    assert engine._whole_models is None
    bare = [generated(tuned[0], ids, max_new_tokens=5) for ids in prompts]
    for n, ids in enumerate(prompts):
        expected = generated(tuned[n % 3], ids, max_new_tokens=5) if n % 3 else bare[n]
        assert answers[n] == expected
    assert all(any(answers[n] != bare[n] for n in range(kind, 9, 3)) for kind in (1, 2))


def test_the_base_model_is_left_as_it_was(base: BaseModel) -> None:
    ids = torch.arange(5, 37)[None]
    before = base.model.get_encoder()(input_ids=ids).last_hidden_state
    BatchedEngine(base).close()
    after = base.model.get_encoder()(input_ids=ids).last_hidden_state
    assert torch.equal(before, after)
