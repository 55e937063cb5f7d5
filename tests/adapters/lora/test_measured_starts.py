"""What probes make of what they are shown; against PEFT in training/test_start_measurement.py."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from fixtures.lora_models import make_llama

from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.measured_starts import LoraStart
from luthier.adapters.storage import save_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError, InvalidInputError, TrainingDataError


def _adapter(word: str, **changes: object) -> LoraAdapter:
    config = LoraConfig.from_mapping({"rank": 2, "alpha": 4, "initialisation": word, **changes})
    return create_lora(make_llama(), config, seed=1)


def _probe(adapter: LoraAdapter) -> LoraStart:
    probe = adapter.start_probe()
    assert isinstance(probe, LoraStart)
    return probe


def _show(probe: LoraStart, *, size_of: dict[str, float] | None = None) -> None:
    """Random inputs and gradients, of one batch; some layers' inputs have one direction alone."""
    generator = torch.Generator().manual_seed(2)
    for path, target in probe.targets.items():
        inputs = torch.randn(20, target.in_features, generator=generator)
        if size_of is not None and not path.endswith(tuple(size_of)):
            inputs = inputs[:, :1] * torch.ones(target.in_features)
        gradients = torch.randn(20, target.out_features, generator=generator)
        if probe.wants_gradients:
            probe.see_gradients(path, inputs, gradients)
        else:
            probe.see_inputs(path, inputs, None)
    probe.end_batch()


def test_starts_that_look_at_no_data_have_no_probe() -> None:
    for word in ("default", "pissa", "mica"):
        assert _adapter(word).start_probe() is None
        assert _adapter(word).start_settings() == {}
    assert _adapter("eva").start_settings()["eva_rho"] == 2.0


def test_a_layer_that_earns_no_rank_is_left_out_for_plain_peft_too(tmp_path: Path) -> None:
    adapter = _adapter("eva", eva_rho=8.0)
    probe = _probe(adapter)
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

    adapter = _adapter("eva", rank=1)
    probe = _probe(adapter)
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
    adapter = _adapter("eva", target_modules=["q_proj", "k_proj"])
    probe = _probe(adapter)
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


@pytest.mark.parametrize("word", ["eva", "corda", "lora_ga"])
def test_a_probe_takes_up_what_another_began_with(word: str) -> None:
    adapter, other = _adapter(word, use_dora=True), _adapter(word, use_dora=True)
    probe = _probe(adapter)
    _show(probe)
    probe.begin()
    _probe(other).resume(adapter.peft_config(), adapter.peft_state())
    assert other.peft_config() == adapter.peft_config()
    expected = dict(adapter.named_parameters())
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for path, factors in other.factors.items():
        if word != "eva":
            assert torch.equal(factors.start_a, adapter.factors[path].start_a)


def test_a_probe_refuses_what_is_of_another_adapter() -> None:
    wide, narrow = _adapter("corda", rank=3), _adapter("corda")
    with pytest.raises(ArtifactError, match="has shape"):
        _probe(narrow).resume(wide.peft_config(), wide.peft_state())


@pytest.mark.parametrize("word", ["eva", "corda", "lora_ga"])
def test_a_layer_that_nothing_reaches_is_named(word: str) -> None:
    probe = _probe(_adapter(word))
    path = "model.layers.1.mlp.up_proj"
    shown = {key: target for key, target in probe.targets.items() if key != path}
    for key, target in shown.items():
        inputs = torch.randn(20, target.in_features)
        if probe.wants_gradients:
            probe.see_gradients(key, inputs, torch.randn(20, target.out_features))
        else:
            probe.see_inputs(key, inputs, None)
    probe.end_batch()
    with pytest.raises(TrainingDataError, match=f"'{path}'; leave it out"):
        probe.begin()


def test_a_rank_that_the_start_cannot_have_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"rank 9 needs 9 parts of layer.*at most 8"):
        _adapter("corda", rank=9)
    with pytest.raises(InvalidInputError, match=r"rank 5 needs 10 parts of layer.*at most 8"):
        _adapter("lora_ga", rank=5)


def test_inputs_without_any_number_have_no_covariance() -> None:
    probe = _probe(_adapter("corda"))
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
    probe = _probe(adapter)
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
