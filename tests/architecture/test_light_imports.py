"""Packages that must answer at once load neither torch nor transformers, not even indirectly."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft"}

REPORT = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


def loaded_by(module: str, *watched: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", REPORT, module, *watched],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "luthier",
        "luthier.errors",
        "luthier.config",
        "luthier.config.caikit_bridge",
        "luthier.data_model",
        "luthier.data_model.tuning",
        "luthier.data_model.sampling",
        "luthier.client",
        "luthier.cli",
        "luthier.cli.__main__",
        "luthier.cli.app",
    ],
)
def test_a_light_package_loads_nothing_heavy(module):
    assert loaded_by(module, *HEAVY) == ""


@pytest.mark.parametrize("module", ["luthier", "luthier.config", "luthier.cli.app"])
def test_settings_and_help_do_not_load_caikit(module):
    assert loaded_by(module, "caikit") == ""


HELP = """
import sys
sys.argv = ["luthier", "--help"]
from luthier.cli.__main__ import main
try:
    main()
except SystemExit as stop:
    code = stop.code
print("LOADED", *sorted({"torch", "transformers", "caikit"} & set(sys.modules)))
"""


def test_help_loads_nothing_heavy_and_names_the_commands():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("LOADED")
    for command in ("serve", "train", "generate", "models", "doctor"):
        assert command in done.stdout
