"""Against PEFT: training/test_start_measurement.py."""

from __future__ import annotations

import pytest
import torch
from fixtures.lora_starts import probe_of, show, show_layer, start_adapter

from luthier.errors import ArtifactError, TrainingDataError


@pytest.mark.parametrize("word", ["eva", "corda", "lora_ga"])
def test_a_probe_takes_up_what_another_began_with(word: str) -> None:
    adapter, other = start_adapter(word, use_dora=True), start_adapter(word, use_dora=True)
    probe = probe_of(adapter)
    show(probe)
    probe.begin()
    probe_of(other).resume(adapter.peft_config(), adapter.peft_state())
    assert other.peft_config() == adapter.peft_config()
    expected = dict(adapter.named_parameters())
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for path, factors in other.factors.items():
        if word != "eva":
            assert torch.equal(factors.start_a, adapter.factors[path].start_a)


def test_a_probe_refuses_what_is_of_another_adapter() -> None:
    wide, narrow = start_adapter("corda", rank=3), start_adapter("corda")
    with pytest.raises(ArtifactError, match="has shape"):
        probe_of(narrow).resume(wide.peft_config(), wide.peft_state())


@pytest.mark.parametrize("word", ["eva", "corda", "lora_ga"])
def test_a_layer_that_nothing_reaches_is_named(word: str) -> None:
    probe = probe_of(start_adapter(word))
    path = "model.layers.1.mlp.up_proj"
    shown = {key: target for key, target in probe.targets.items() if key != path}
    for key, target in shown.items():
        inputs = torch.randn(20, target.in_features)
        show_layer(probe, key, inputs, torch.randn(20, target.out_features))
    probe.end_batch()
    with pytest.raises(TrainingDataError, match=f"'{path}'; leave it out"):
        probe.begin()
