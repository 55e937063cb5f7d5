"""Compiles the kernels when Luthier is installed; everything else is said in pyproject.toml.

The kernels are plain C libraries, one for each set of instructions, that any Python can load. They
are compiled by the system's C compiler (or ``CC``), where there is none by Zig's, which pip
brings. Where neither can, Luthier is installed without them and computes by PyTorch alone.
"""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Path("luthier/inference/kernels")
X86_FLAGS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}
#: What a library is compiled for, by the machine.
FLAGS = {
    "x86_64": X86_FLAGS,
    "AMD64": X86_FLAGS,
    "aarch64": {"neon": []},
    "arm64": {"neon": []},
}.get(platform.machine(), {})
#: Sums may be reordered where the source does it, not where a compiler likes to.
COMMON_FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-Wall", "-Wextra"]


def system_compiler() -> list[str]:
    """The command of the system's C compiler; empty if there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else []


class BuildKernels(build_ext):
    """Compiles each library by one call of the compiler; none of them is a module of Python."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one library.

        Raises:
            CompileError: If that cannot be done; setuptools goes on without the library.
        """
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = system_compiler() or [sys.executable, "-m", "ziglang", "cc"]
        sources = runpy.run_path(str(KERNELS / "sources.py"))["fingerprint"](KERNELS)
        flags = [*COMMON_FLAGS, f'-DLUTHIER_SOURCES="{sources}"', *ext.extra_compile_args]
        command = [*compiler, *flags, *ext.sources, "-lm"]
        try:
            subprocess.run([*command, "-o", str(target)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"{target.name} could not be compiled: {error}") from error

    def get_ext_filename(self, fullname: str) -> str:
        """Where a library lies; the dot in its name keeps Python from taking it for a module."""
        *folder, name = fullname.split(".")
        return str(Path(*folder, f"kernels.{name}.so"))


class WheelForAnyPython(bdist_wheel):
    """Names the wheel by the machine alone."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, no ABI, this machine."""
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[
        Extension(
            ".".join((*KERNELS.parts, name)),
            sources=sorted(map(str, KERNELS.glob("*.c"))),
            depends=sorted(map(str, KERNELS.glob("*.h"))),
            extra_compile_args=flags,
            optional=True,
        )
        for name, flags in FLAGS.items()
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": WheelForAnyPython},
    # pip installs this into the environment that it builds in, and nowhere else.
    setup_requires=[] if system_compiler() else ["ziglang==0.17.1"],
)
