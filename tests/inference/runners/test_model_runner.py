from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from luthier.data_model.sampling import SamplingParams
from luthier.errors import NotSupportedError
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.runners.base import RunnerLimits
from luthier.inference.runners.model_runner import PackedRunner
from luthier.resources.base_model import BaseModel


def llama_like(config_class: type, **changes: Any) -> Any:
    return config_class(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        eos_token_id=1,
        **changes,
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(llama_like(Qwen3Config)),
    "mistral": lambda: MistralForCausalLM(llama_like(MistralConfig, sliding_window=None)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=400,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=256,
        )
    ),
}


def base_of(model: PreTrainedModel, causal_base: BaseModel) -> BaseModel:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return BaseModel.from_memory(model, causal_base.tokenizer, name="tiny")


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_answer_like_the_model_itself(name: str, causal_base: BaseModel) -> None:
    base = base_of(MODELS[name](), causal_base)
    engines = [PlainEngine(base), BatchedEngine(base)]
    requests = [
        GenerationRequest(tuple(range(20 + n, 40 + 2 * n)), SamplingParams(max_new_tokens=12))
        for n in range(5)
    ]
    answers = []
    for engine in engines:
        streams = [engine.submit(request) for request in requests]
        answers.append([[t.token_id for c in s for t in c.tokens] for s in streams])
        engine.close()
    assert answers[0] == answers[1]
    assert len({tuple(answer) for answer in answers[0]}) > 1


WINDOW = 8
MIXED = ["sliding_attention", "full_attention"]
#: Layers that see the last 8 tokens, alone or mixed with others; capped scores; sinks.
WINDOWED: dict[str, Callable[[], PreTrainedModel]] = {
    "mistral": lambda: MistralForCausalLM(llama_like(MistralConfig, sliding_window=WINDOW)),
    "phi3": lambda: Phi3ForCausalLM(
        llama_like(Phi3Config, sliding_window=WINDOW, pad_token_id=0, bos_token_id=2)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        llama_like(Qwen2Config, sliding_window=WINDOW, use_sliding_window=True, layer_types=MIXED)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        llama_like(
            Gemma2Config,
            sliding_window=WINDOW,
            layer_types=MIXED,
            attn_logit_softcapping=2.0,
            query_pre_attn_scalar=8,
        )
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        llama_like(
            Gemma3TextConfig, sliding_window=WINDOW, layer_types=MIXED, query_pre_attn_scalar=8
        )
    ),
    "gpt_oss": lambda: GptOssForCausalLM(
        llama_like(
            GptOssConfig,
            sliding_window=WINDOW,
            layer_types=MIXED,
            num_local_experts=2,
            num_experts_per_tok=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
    ),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_prompts_longer_than_the_window_equal_transformers_generate(
    name: str, causal_base: BaseModel
) -> None:
    model = WINDOWED[name]()
    for key, parameter in model.named_parameters():
        if key.endswith("sinks"):
            torch.nn.init.constant_(parameter, 1.0)
    base = base_of(model, causal_base)
    engine = BatchedEngine(base, EngineOptions(max_step_tokens=13))  # prompts go in pieces
    prompts = [tuple(range(20 + n, 25 + 5 * n)) for n in range(8)]
    sampling = SamplingParams(max_new_tokens=2 * WINDOW)
    streams = [engine.submit(GenerationRequest(ids, sampling)) for ids in prompts]
    answers = [[token.token_id for chunk in s for token in chunk.tokens] for s in streams]
    engine.close()
    for ids, answer in zip(prompts, answers, strict=True):
        expected = base.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=2 * WINDOW,
            eos_token_id=list(base.eos_token_ids),
            pad_token_id=base.pad_token_id,
        )[0, len(ids) :].tolist()
        assert answer == expected
    assert len({tuple(answer) for answer in answers}) > 4


def test_where_every_layer_has_a_window_no_row_holds_much_more(
    causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(WINDOWED["mistral"](), causal_base)
    engine = BatchedEngine(base, EngineOptions(max_step_tokens=40))
    held: list[tuple[int, int]] = []
    run = PackedRunner.run

    def noted(runner: PackedRunner, slices: Any) -> Any:
        held.extend((each.start, each.row.kv.capacity) for each in slices if each.count == 1)
        return run(runner, slices)

    monkeypatch.setattr(PackedRunner, "run", noted)
    requests = [
        GenerationRequest(
            tuple(range(5, 5 + length)),
            SamplingParams(max_new_tokens=num_new, min_new_tokens=num_new, num_beams=num_beams),
        )
        for length, num_new, num_beams in ((5, 230, 1), (150, 90, 1), (40, 120, 2), (7, 200, 1))
    ]
    streams = [engine.submit(request) for request in requests]
    answers = [[token.token_id for chunk in s for token in chunk.tokens] for s in streams]
    allocator = engine._runner.memory.allocator
    engine.close()
    assert allocator.num_free == allocator.num_tokens
    for request, answer in zip(requests, answers, strict=True):
        expected = base.model.generate(
            torch.tensor([request.input_ids]),
            attention_mask=torch.ones(1, len(request.input_ids), dtype=torch.long),
            do_sample=False,
            num_beams=request.sampling.num_beams,
            max_new_tokens=request.sampling.max_new_tokens,
            min_new_tokens=request.sampling.min_new_tokens,
            eos_token_id=list(base.eos_token_ids),
            pad_token_id=base.pad_token_id,
        )[0, len(request.input_ids) :].tolist()
        assert answer == expected
    # The window, room to grow, and what rounding to whole blocks adds at either end.
    most = WINDOW + 64 + 2 * 16
    assert max(capacity for start, capacity in held if start > 160) <= most
    assert max(start for start, _ in held) > 2 * most


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: MambaForCausalLM(
                MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1)
            ),
            "does not let its attention be replaced",
        ),
        (  # its layers attend twice, to other values
            lambda: DiffLlamaForCausalLM(llama_like(DiffLlamaConfig)),
            "other logits than its own",
        ),
        (
            lambda: Gemma3ForCausalLM(
                llama_like(Gemma3TextConfig, use_bidirectional_attention=True)
            ),
            "both directions",
        ),
        (
            lambda: Qwen3ForCausalLM(
                llama_like(
                    Qwen3Config,
                    rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                )
            ),
            "longest row",
        ),
    ],
)
def test_a_model_that_cannot_be_packed_is_refused_with_the_reason(
    model: Callable[[], PreTrainedModel], reason: str, causal_base: BaseModel
) -> None:
    with pytest.raises(NotSupportedError, match=reason):
        PackedRunner(base_of(model(), causal_base), RunnerLimits(max_kv_bytes=10**6, max_rows=2))


def test_the_weights_are_shared_and_the_base_model_is_left_as_it_was(
    causal_base: BaseModel,
) -> None:
    before = causal_base.model.config._attn_implementation
    runner = PackedRunner(causal_base, RunnerLimits(max_kv_bytes=10**6, max_rows=2))
    pairs = zip(runner._model.parameters(), causal_base.model.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    assert causal_base.model.config._attn_implementation == before


def test_a_model_whose_packed_logits_differ_is_refused(causal_base: BaseModel) -> None:
    class Odd(type(causal_base.model)):  # type: ignore[misc]
        def forward(
            self,
            position_ids: Any = None,
            inputs_embeds: Any = None,
            logits_to_keep: Any = 0,
            **k: Any,
        ) -> Any:
            if inputs_embeds is not None:
                inputs_embeds = inputs_embeds * 1.1
            return super().forward(
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                logits_to_keep=logits_to_keep,
                **k,
            )

    model = Odd(causal_base.model.config).eval()
    model.load_state_dict(causal_base.model.state_dict())
    model.lm_head.weight.requires_grad_(False)
    with pytest.raises(NotSupportedError, match="other logits"):
        PackedRunner(
            replace(causal_base, model=model), RunnerLimits(max_kv_bytes=10**6, max_rows=2)
        )
