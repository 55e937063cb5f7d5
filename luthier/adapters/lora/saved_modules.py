"""Modules that a tuning trained whole, beside its deltas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class SavedModule:
    """A module that is trained whole, or in part, in the base's place.

    Args:
        network: The copy. Parameters that several modules share are shared by their copies too.
        learned: Names of its parameters that training may change.
    """

    network: nn.Module
    learned: frozenset[str]


def layers_of(saved: Mapping[str, SavedModule]) -> dict[str, nn.Module] | None:
    """The single layers that saved modules are made of.

    A module is the base's in all but its tensors, so that putting each of its layers in the place
    of the base's does what putting in the module does.

    Args:
        saved: By path.

    Returns:
        Every layer that has tensors, by path; None if a module has tensors beside its layers.
    """
    layers: dict[str, nn.Module] = {}
    for path, module in saved.items():
        for name in module.network.state_dict():
            inner = name.rpartition(".")[0]
            layer = module.network.get_submodule(inner)
            if any(True for _ in layer.children()):
                return None
            layers[f"{path}.{inner}" if inner else path] = layer
    return layers
