from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixtures.any_mix import SteppedEngine
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from luthier.adapters.base import Adapter
from luthier.adapters.prompts.key_values import prefix_shape_of
from luthier.adapters.prompts.prefix_tuning import PrefixTuning
from luthier.data_model.options.prompt_encoder import PromptEncoderOptions
from luthier.data_model.sampling import SamplingParams
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.linear.few_tokens import max_exact_tokens
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.runners.base import RunnerLimits
from luthier.inference.runners.seq2seq.encoder_decoder_runner import EncoderDecoderRunner
from luthier.resources.base_model import BaseModel


def t5_like(config_class: type, **changes: Any) -> Any:
    return config_class(
        vocab_size=400,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=0,
        **changes,
    )


def bart_like(config_class: type, **changes: Any) -> Any:
    settings = dict(
        vocab_size=400,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=128,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    return config_class(**{**settings, **changes})


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "mt5": lambda: MT5ForConditionalGeneration(t5_like(MT5Config, feed_forward_proj="gated-gelu")),
    "umt5": lambda: UMT5ForConditionalGeneration(t5_like(UMT5Config)),
    "bart": lambda: BartForConditionalGeneration(bart_like(BartConfig)),
    "mbart": lambda: MBartForConditionalGeneration(bart_like(MBartConfig)),
    "pegasus": lambda: PegasusForConditionalGeneration(bart_like(PegasusConfig)),
    "marian": lambda: MarianMTModel(bart_like(MarianConfig)),
    "m2m100": lambda: M2M100ForConditionalGeneration(
        bart_like(M2M100Config, decoder_start_token_id=1)
    ),
}


def base_of(model: PreTrainedModel, like: BaseModel) -> BaseModel:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return BaseModel.from_memory(model, like.tokenizer, name="tiny")


def requests_of(count: int) -> list[GenerationRequest]:
    """Prompts of 3 to 40 tokens, answers of up to 5 to 14."""
    return [
        GenerationRequest(
            tuple((7 * n + 11 * i) % 390 + 5 for i in range(3 + 37 * n // count)),
            SamplingParams(max_new_tokens=5 + n % 10),
        )
        for n in range(count)
    ]


def answers_of(engine: Engine, requests: list[GenerationRequest]) -> list[list[int]]:
    streams = [engine.submit(request) for request in requests]
    return [[token.token_id for chunk in s for token in chunk.tokens] for s in streams]


def generated(base: BaseModel, request: GenerationRequest) -> list[int]:
    output: list[int] = base.model.generate(
        torch.tensor([request.input_ids]),
        attention_mask=torch.ones(1, len(request.input_ids), dtype=torch.long),
        do_sample=False,
        num_beams=1,
        max_new_tokens=request.sampling.max_new_tokens,
        eos_token_id=list(base.eos_token_ids),
    )[0, 1:].tolist()
    return output


@pytest.mark.usefixtures("either_way")
def test_32_requests_at_once_equal_transformers_generate(seq2seq_base: BaseModel) -> None:
    engine = BatchedEngine(seq2seq_base)
    requests = requests_of(32)
    answers = answers_of(engine, requests)
    engine.close()
    assert answers == [generated(seq2seq_base, request) for request in requests]
    assert len({tuple(answer) for answer in answers}) > 10


@pytest.mark.parametrize("name", MODELS)
def test_models_of_many_families_equal_transformers_generate(
    name: str, seq2seq_base: BaseModel
) -> None:
    base = base_of(MODELS[name](), seq2seq_base)
    engine = BatchedEngine(base, EngineOptions(max_step_tokens=40))  # encoders take turns
    requests = requests_of(12)
    answers = answers_of(engine, requests)
    engine.close()
    assert answers == [generated(base, request) for request in requests]
    assert len({tuple(answer) for answer in answers}) > 4


def test_prefixes_and_prompts_on_either_side_share_a_batch(
    seq2seq_base: BaseModel, make_prompt: Callable[..., Adapter]
) -> None:
    """Each row gives what it gives alone in the engine that runs one row at a time."""
    generator = torch.Generator().manual_seed(4)
    shape = prefix_shape_of(seq2seq_base)
    rows = torch.randn(5, shape.width, generator=generator)
    adapters = [
        None,
        PrefixTuning(rows, kind="seq2seq", shape=shape, options=PromptEncoderOptions()),
        *(make_prompt(seq2seq_base, seed=2, parts=part) for part in ("encoder", "decoder", "both")),
    ]
    requests = [
        replace(request, adapter=adapters[n % len(adapters)])
        for n, request in enumerate(requests_of(15))
    ]
    answers = []
    for engine in (PlainEngine(seq2seq_base), BatchedEngine(seq2seq_base)):
        answers.append(answers_of(engine, requests))
        engine.close()
    assert answers[0] == answers[1]
    bare = [generated(seq2seq_base, request) for request in requests]
    assert all(answers[0][n] != bare[n] for n in range(15) if n % len(adapters))


def test_rows_that_had_to_give_way_answer_the_same(seq2seq_base: BaseModel) -> None:
    """A cache too small for all rows: they lose their place and are read again."""
    requests = [
        GenerationRequest(request.input_ids, SamplingParams(max_new_tokens=90, min_new_tokens=90))
        for request in requests_of(6)
    ]
    roomy, tight = BatchedEngine(seq2seq_base), None
    bytes_per_token = 2 * 2 * 4 * 8 * 4
    try:
        tight = BatchedEngine(seq2seq_base, EngineOptions(max_kv_bytes=320 * bytes_per_token))
        assert answers_of(tight, requests) == answers_of(roomy, requests)
        with pytest.raises(InvalidInputError, match=r"400 tokens.* cache holds 3"):
            tight.submit(GenerationRequest((5,) * 399, SamplingParams()))
    finally:
        roomy.close()
        if tight is not None:
            tight.close()


def test_weights_are_shared_and_the_base_model_is_left_as_it_was(seq2seq_base: BaseModel) -> None:
    configs = [seq2seq_base.model.config, seq2seq_base.model.decoder.config]
    before = [config._attn_implementation for config in configs]
    memory = {parameter.data_ptr() for parameter in seq2seq_base.model.parameters()}
    runner = EncoderDecoderRunner(seq2seq_base, RunnerLimits(max_kv_bytes=10**6, max_rows=2))
    assert {parameter.data_ptr() for parameter in runner._model.parameters()} == memory
    assert [config._attn_implementation for config in configs] == before


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: ProphetNetForConditionalGeneration(
                ProphetNetConfig(
                    vocab_size=400,
                    hidden_size=32,
                    num_encoder_layers=1,
                    num_decoder_layers=1,
                    num_encoder_attention_heads=4,
                    num_decoder_attention_heads=4,
                    encoder_ffn_dim=48,
                    decoder_ffn_dim=48,
                    decoder_start_token_id=2,
                )
            ),
            "does not run packed rows",
        ),
    ],
)
def test_a_model_that_cannot_be_packed_is_refused_with_the_reason(
    make: Callable[[], PreTrainedModel], reason: str, seq2seq_base: BaseModel
) -> None:
    base = base_of(make(), seq2seq_base)
    with pytest.raises(NotSupportedError, match=reason):
        EncoderDecoderRunner(base, RunnerLimits(max_kv_bytes=10**6, max_rows=2))


def test_a_cache_too_small_for_anything_is_refused(seq2seq_base: BaseModel) -> None:
    with pytest.raises(NotSupportedError, match="at least 64 are needed"):
        EncoderDecoderRunner(seq2seq_base, RunnerLimits(max_kv_bytes=2000, max_rows=2))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_every_linear_layer_but_the_head_takes_deltas(name: str, seq2seq_base: BaseModel) -> None:
    base = seq2seq_base if name == "t5" else base_of(MODELS[name](), seq2seq_base)
    head = base.model.get_output_embeddings()
    paths = {
        path
        for path, layer in base.model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head
    }
    runner = EncoderDecoderRunner(base, RunnerLimits(max_kv_bytes=10**6, max_rows=2))
    assert runner.deltas is not None
    assert runner.deltas.takes(frozenset(paths))
    assert len(paths) == {"t5": 2 * 6 + 2 * 10, "bart": 2 * 6 + 2 * 10}[name]


@pytest.mark.skipif(
    max_exact_tokens(torch.device("cpu"), torch.float32) is None, reason="no kernels here"
)
def test_rows_that_begin_together_give_the_bits_of_each_alone(seq2seq_base: BaseModel) -> None:
    """The long one goes in over a step's budget: all in one pass would be multiplied otherwise."""
    sampling = SamplingParams(max_new_tokens=4, token_logprobs=True)
    requests = [
        GenerationRequest(tuple((7 * i) % 390 + 5 for i in range(length)), sampling)
        for length in (20, 60, 180)
    ]
    engine = SteppedEngine(seq2seq_base, EngineOptions())
    with engine.gate.opened():
        alone = [list(engine.submit(each)) for each in requests]
    streams = [engine.submit(each) for each in requests]
    with engine.gate.opened():
        together = [list(stream) for stream in streams]
    engine.close()
    for some, others in zip(alone, together, strict=True):
        assert [c.tokens for c in some] == [c.tokens for c in others]
