from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from luthier.inference.kernels.library import kernels
from luthier.inference.memory.kv_cache import KvArena, KvShape
from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import (
    PackedBatch,
    PackedRow,
    with_packed_attention,
)
from luthier.inference.runners.rotary_attention import quicken_rotary_attention
from luthier.inference.runners.told_attention import NAME, told_attention

SLIDING = {
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention"],
    "use_sliding_window": True,
}
MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-3": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 9}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, SLIDING),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, SLIDING),
    "gemma": (GemmaConfig, GemmaForCausalLM, {}),
    "granite": (GraniteConfig, GraniteForCausalLM, {"attention_multiplier": 0.3}),
}
#: Of two rows, how many tokens each step computes.
STEPS = [(11, 1), (1, 6), (3, 9), (8, 1), (1, 1)]


def make_model(name: str, head_dim: int) -> PreTrainedModel:
    torch.manual_seed(3)
    config_class, model_class, changes = MODELS[name]
    config = config_class(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=64,
        pad_token_id=0,
        **changes,
    )
    model: PreTrainedModel = model_class(config).eval().requires_grad_(False)
    return model


def logits_by_steps(
    network: PreTrainedModel, rows: list[torch.Tensor], head_dim: int
) -> list[torch.Tensor]:
    """What packed rows give in ``STEPS``, of each row."""
    step: CurrentStep[PackedBatch] = CurrentStep(network)
    arena = KvArena(KvShape(2, 2, head_dim), 64, dtype=torch.float32, device=torch.device("cpu"))
    found: list[list[torch.Tensor]] = [[], []]
    done = [0, 0]
    for counts in STEPS:
        slots: list[int] = []
        packed: list[PackedRow] = []
        for index, count in enumerate(counts):
            start = index * 32
            stop = start + done[index] + count
            ones = torch.ones(count, stop - start, dtype=torch.bool)
            mask = ones.tril(diagonal=done[index])
            packed.append(PackedRow(len(slots), count, start, stop, mask if count > 1 else None))
            slots.extend(range(stop - count, stop))
        step.set(PackedBatch(arena, torch.tensor(slots), tuple(packed)))
        pairs = list(zip(rows, done, counts, strict=True))
        ids = torch.cat([row[first : first + count] for row, first, count in pairs])
        places = [place for _, first, n in pairs for place in range(first, first + n)]
        logits = network(
            input_ids=ids[None], position_ids=torch.tensor([places]), use_cache=False
        ).logits[0]
        for parts, part in zip(found, logits.split(counts), strict=True):
            parts.append(part)
        done = [first + count for _, first, count in pairs]
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("head_dim", [8, 16, 64])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_models_own_at_any_position(
    monkeypatch: pytest.MonkeyPatch, name: str, head_dim: int
) -> None:
    model = make_model(name, head_dim)
    rows = [torch.randint(1, 50, (sum(counts),)) for counts in zip(*STEPS, strict=True)]
    expected = [model(input_ids=row[None]).logits[0] for row in rows]
    network = with_packed_attention(model, name=NAME, attention=told_attention)
    quicken_rotary_attention(network)
    if kernels() is not None:  # nobody else applies positions then
        monkeypatch.setattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
    for got, wanted in zip(logits_by_steps(network, rows, head_dim), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_layers_go_their_own_way_where_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("qwen3", 8)
    rows = [torch.randint(1, 50, (sum(counts),)) for counts in zip(*STEPS, strict=True)]
    network = with_packed_attention(model, name=NAME, attention=told_attention)
    quicken_rotary_attention(network)
    expected = logits_by_steps(network, rows, 8)
    monkeypatch.setattr(
        "luthier.inference.runners.row_attention.kernel", lambda name, arguments: None
    )
    for got, wanted in zip(logits_by_steps(network, rows, 8), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
