from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.inference.kernels import library
from luthier.inference.kernels.library import kernel, kernels


@pytest.fixture(autouse=True)
def _forgets_the_library() -> Iterator[None]:
    for cached in (kernels, kernel):
        cached.cache_clear()
    yield
    for cached in (kernels, kernel):
        cached.cache_clear()


def test_a_kernel_is_a_function_of_the_library() -> None:
    if kernels() is None:
        pytest.skip("no kernels for this machine")
    function = kernel("few_tokens", "pppp lllll i")
    assert function is not None
    assert len(function.argtypes) == 10  # type: ignore[attr-defined]


def test_nothing_is_loaded_where_nothing_was_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert kernels() is None
    assert kernel("few_tokens", "pppp lllll i") is None


def test_pytorch_alone_computes_where_its_capability_is_lowered() -> None:
    code = (
        "from torch import nn\n"
        "from luthier.inference.kernels.library import kernels\n"
        "from luthier.inference.linear.few_tokens import quicken_few_tokens\n"
        "network = nn.Sequential(nn.Linear(16, 16))\n"
        "quicken_few_tokens(network)\n"
        "print(kernels(), type(network[0]).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["None", "Linear"]
