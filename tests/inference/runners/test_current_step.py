from __future__ import annotations

import pytest
from torch import nn

from luthier.errors import NotSupportedError
from luthier.inference.runners.current_step import CurrentStep


def test_every_module_of_a_network_finds_its_own_networks_step() -> None:
    networks = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)]
    steps: list[CurrentStep[str]] = [CurrentStep(network) for network in networks]
    for step, name in zip(steps, ("first", "second"), strict=True):
        step.set(name)
    for network, name in zip(networks, ("first", "second"), strict=True):
        assert [CurrentStep.of(module) for module in network.modules()] == [name] * 3
    steps[0].set("later")
    assert CurrentStep.of(networks[0][1]) == "later"


def test_a_module_that_was_told_nothing_is_refused() -> None:
    told = nn.Linear(2, 2)
    CurrentStep(told)
    for module in (told, nn.ReLU()):
        with pytest.raises(NotSupportedError, match="is not told which rows"):
            CurrentStep.of(module)
