"""The two ways of attention on a CPU."""

from __future__ import annotations

import pytest

from luthier.inference.kernels.library import kernels


@pytest.fixture(params=["kernels", "pytorch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with attention by the kernel, where this machine has it, and by PyTorch."""
    if request.param == "pytorch":
        monkeypatch.setattr("luthier.inference.runners.row_attention._kernel", lambda: None)
    elif kernels() is None:
        pytest.skip("no kernels for this machine")
