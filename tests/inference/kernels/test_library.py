from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from luthier.inference.kernels import library
from luthier.inference.kernels.library import can_read, kernel, kernels


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


def copy_of_the_library(folder: Path) -> Path:
    """A file of its own beside sources of its own, which it was compiled from."""
    library_file = next(Path(library.__file__).parent.glob(f"kernels.{library._library_name()}.so"))
    for path in (library_file, *library_file.parent.glob("*.[ch]")):
        shutil.copyfile(path, folder / path.name)
    return folder / library_file.name


@pytest.mark.skipif(kernels() is None, reason="no kernels for this machine")
@pytest.mark.parametrize("change", ["nothing", "a source", "a source that is new", "the library"])
def test_a_library_of_other_sources_is_not_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    path = copy_of_the_library(tmp_path)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    warnings: list[str] = []
    monkeypatch.setattr(library.log, "warning", lambda text, *_: warnings.append(text))
    if change == "a source":
        (tmp_path / "gates.c").write_text("// of a later version")
    elif change == "a source that is new":
        (tmp_path / "later.c").write_text("")
    elif change == "the library":
        path.write_bytes(b"no library")
    assert (kernels() is not None) == (change == "nothing")
    assert len(warnings) == (change != "nothing")


@pytest.mark.skipif(kernels() is None, reason="no kernels for this machine")
def test_a_library_that_is_too_old_to_tell_its_sources_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OldLibrary:
        """Of the time before ``luthier_sources``."""

        def __init__(self, path: str) -> None:
            self.path = path

    monkeypatch.setattr("ctypes.CDLL", OldLibrary)
    assert kernels() is None


@pytest.mark.parametrize(
    ("machine", "capability", "lowered", "expected"),
    [
        ("x86_64", "AVX512", None, "avx512"),
        ("x86_64", "AVX2", "avx2", "avx2"),
        ("x86_64", "DEFAULT", "default", None),
        ("x86_64", "NO AVX", None, None),
        ("x86_64", "AVX10", None, None),
        ("aarch64", "DEFAULT", None, "neon"),
        ("aarch64", "SVE256", None, "neon"),
        ("arm64", "DEFAULT", None, "neon"),
        ("aarch64", "DEFAULT", "default", None),
        ("ppc64le", "VSX", None, None),
    ],
)
def test_the_library_is_that_of_what_pytorch_computes_with(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    capability: str,
    lowered: str | None,
    expected: str | None,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    if lowered is None:
        monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    else:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", lowered)
    assert library._library_name() == expected


def test_kernels_read_floats_of_a_cpu_side_by_side_that_need_no_gradients() -> None:
    fits = torch.zeros(2, 3)
    assert can_read(fits, torch.nn.Parameter(fits, requires_grad=False))
    asks = torch.zeros(2, 3, requires_grad=True)
    for other in (fits.double(), fits.bfloat16(), fits.t(), fits[:1].expand(2, 3), asks):
        assert not can_read(fits, other)
        assert not can_read(other)
    assert not can_read(fits.to("meta"))
    with torch.inference_mode():
        assert can_read(asks, torch.zeros(2))


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
