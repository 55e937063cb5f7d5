"""Against PEFT: training/test_start_measurement.py."""

from __future__ import annotations

import pytest
import torch
from fixtures.lora_models import make_llama
from fixtures.lora_starts import probe_of, start_adapter

from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import InvalidInputError, TrainingDataError


def test_a_rank_that_the_start_cannot_have_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"rank 9 needs 9 parts of layer.*at most 8"):
        start_adapter("corda", rank=9)


def test_inputs_without_any_number_have_no_covariance() -> None:
    probe = probe_of(start_adapter("corda"))
    for path, target in probe.targets.items():
        probe.see_inputs(path, torch.zeros(3, target.in_features), None)
    probe.end_batch()
    with pytest.raises(TrainingDataError, match="are all 0, or not finite"):
        probe.begin()


def test_the_parts_that_matter_most_are_found_without_all_others() -> None:
    """In layers much wider than the rank; compared with a whole decomposition."""
    torch.manual_seed(4)
    model = make_llama(hidden_size=64, intermediate_size=96)
    config = LoraConfig(
        rank=2, alpha=4, initialisation="corda", target_modules=("gate_proj", "up_proj")
    )
    adapter = create_lora(model, config, seed=1)
    probe = probe_of(adapter)
    for block in range(2):
        inputs = torch.randn(80, 64) * torch.logspace(0.5, -1.5, 64)
        for name in ("gate_proj", "up_proj"):
            probe.see_inputs(f"model.layers.{block}.mlp.{name}", inputs, None)
        covariance = (inputs / inputs.max()).T @ (inputs / inputs.max())
        damped = covariance + torch.eye(64) * covariance.diagonal().mean() * 0.01
        if block == 1:
            weight = model.get_submodule("model.layers.1.mlp.up_proj").weight
            u, s, vh = torch.linalg.svd(weight @ damped, full_matrices=False)
            expected = u[:, :2] * s[:2] @ vh[:2] @ torch.linalg.inv(damped)
    probe.end_batch()
    probe.begin()
    factors = adapter.factors["model.layers.1.mlp.up_proj"]
    found = factors.scaling * factors.lora_b @ factors.lora_a
    torch.testing.assert_close(found, expected, atol=2e-2 * float(expected.abs().max()), rtol=0)
