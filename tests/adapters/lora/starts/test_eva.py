"""Against PEFT: training/test_start_measurement.py."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from fixtures.lora_models import make_llama
from fixtures.lora_starts import probe_of, start_adapter

from luthier.adapters.storage import save_adapter


def test_a_layer_that_earns_no_rank_is_left_out_for_plain_peft_too(tmp_path: Path) -> None:
    adapter = start_adapter("eva", eva_rho=8.0)
    probe = probe_of(adapter)
    generator = torch.Generator().manual_seed(2)
    for path, target in probe.targets.items():
        inputs = torch.randn(60, target.in_features, generator=generator)
        if not path.endswith("down_proj"):
            # One direction has it all; the others are noise.
            inputs = inputs[:, :1] * torch.ones(target.in_features) * 9 + inputs * 1e-3
        probe.see_inputs(path, inputs, None)
    probe.end_batch()
    probe.begin()
    ranks = {path: len(factors.lora_a) for path, factors in adapter.factors.items()}
    assert sum(ranks.values()) == 2 * 14
    assert all(rank == 1 for path, rank in ranks.items() if "down_proj" not in path)
    assert all(rank > 2 for path, rank in ranks.items() if "down_proj" in path)
    del adapter.factors["model.layers.0.self_attn.q_proj"]  # as if it had earned none

    adapter = start_adapter("eva", rank=1)
    probe = probe_of(adapter)
    for path, target in probe.targets.items():
        inputs = torch.randn(60, target.in_features, generator=generator)
        if path.endswith("down_proj"):
            inputs = torch.randn(60, 2, generator=generator) @ torch.randn(2, target.in_features)
        probe.see_inputs(path, inputs, None)
    probe.end_batch()
    probe.begin()
    assert len(adapter.factors) < 14
    assert sum(len(factors.lora_a) for factors in adapter.factors.values()) == 14
    save_adapter(adapter, tmp_path / "adapter", base_model_name="tiny")
    theirs = peft.PeftModel.from_pretrained(make_llama(), tmp_path / "adapter")
    ids = torch.arange(3, 9)[None]
    ours = adapter.tuned_model(make_llama())(ids).logits
    torch.testing.assert_close(theirs(ids).logits, ours, atol=1e-4, rtol=1e-4)


def test_layers_that_read_the_same_tensor_share_a_statistic() -> None:
    adapter = start_adapter("eva", target_modules=["q_proj", "k_proj"])
    probe = probe_of(adapter)
    for block in range(2):
        inputs = torch.randn(20, 16, generator=torch.Generator().manual_seed(block))
        for name in ("q_proj", "k_proj"):
            probe.see_inputs(f"model.layers.{block}.self_attn.{name}", inputs, None)
    probe.end_batch()
    probe.begin()
    first = adapter.factors["model.layers.0.self_attn.q_proj"].lora_a
    second = adapter.factors["model.layers.0.self_attn.k_proj"].lora_a
    shared = min(len(first), len(second))
    assert torch.equal(first[:shared], second[:shared])
