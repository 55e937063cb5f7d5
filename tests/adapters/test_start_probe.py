"""What the contract leaves to those who implement it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from luthier.adapters.start_probe import StartProbe


class _NothingSeen(StartProbe):
    num_batches = 1
    paths = ("layer",)

    def end_batch(self) -> None: ...

    def begin(self) -> None: ...

    def resume(self, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None: ...

    def start_tensors(self) -> Sequence[torch.Tensor]:
        return ()


def test_a_probe_looks_at_inputs_unless_it_says_otherwise() -> None:
    probe = _NothingSeen()
    assert not probe.wants_gradients
    with pytest.raises(NotImplementedError):
        probe.see_inputs("layer", torch.ones(1, 2), None)
    with pytest.raises(NotImplementedError):
        probe.see_gradients("layer", torch.ones(1, 2), torch.ones(1, 3))
