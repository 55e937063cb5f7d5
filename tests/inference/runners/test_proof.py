from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.errors import EngineError, NotSupportedError
from luthier.inference.runners.proof import refusing, require_same

BASE: Any = SimpleNamespace(name="tiny", dtype=torch.float32)


def test_what_a_network_fails_with_becomes_a_refusal_that_says_so() -> None:
    reason = "'tiny' does not run packed rows: no such word"
    with pytest.raises(NotSupportedError, match=reason), refusing(BASE):
        raise TypeError("no such word")
    with pytest.raises(EngineError, match="our own"), refusing(BASE):
        raise EngineError("our own")


def test_logits_may_differ_by_rounding_only() -> None:
    expected = torch.tensor([[1.0, -4.0], [2.0, 0.5]])
    require_same(BASE, expected + 1e-4, expected)
    with pytest.raises(NotSupportedError, match=r"differ by 0\.25 of their size"):
        require_same(BASE, expected + torch.tensor([1.0, 0.0]), expected)
    with pytest.raises(NotSupportedError, match="differ by nan"):
        require_same(BASE, expected * torch.nan, expected)
    half: Any = SimpleNamespace(name="tiny", dtype=torch.bfloat16)
    require_same(half, expected + 0.1, expected)
