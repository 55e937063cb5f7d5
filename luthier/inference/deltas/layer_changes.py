"""All that an adapter does to a network, where that is done to single layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from luthier.adapters.base import Adapter
from luthier.adapters.lora_factors import LoraFactors
from luthier.adapters.token_rows import TokenRows


@dataclass(frozen=True)
class LayerChanges:
    """What an adapter does to layers, by path; none of them is in both.

    Args:
        deltas: Low-rank deltas beside linear layers.
        modules: Layers in the place of the base's.
        rows: Embeddings in the place of those of some of the base's tokens, or None.
    """

    deltas: Mapping[str, LoraFactors]
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    rows: TokenRows | None = None


def changes_of(adapter: Adapter) -> LayerChanges:
    """What an adapter does; read at once, so that one that lies on disk is read once.

    Args:
        adapter: Any.

    Returns:
        Its own tensors.

    Raises:
        LuthierError: If it cannot be read.
    """
    loaded = adapter.loaded()
    return LayerChanges(loaded.linear_deltas(), loaded.whole_modules(), loaded.replaced_rows())
