"""Patches of third parties: each is still needed, and does what it says."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

import luthier.compat  # noqa: F401  applies the patches


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_numpy_has_issubclass_again():
    assert np.issubclass_(bool, int) is True
    assert np.issubclass_(int, str) is False
    assert np.issubclass_(3, int) is False


def test_the_numpy_patch_is_still_needed():
    assert run("import numpy; numpy.issubclass_").returncode != 0


def test_caikit_does_not_read_our_config_files():
    code = """
import os
import luthier.data_model
import caikit
print(os.environ["CONFIG_FILES"], caikit.get_config().config_files)
"""
    done = run(code, CONFIG_FILES="nowhere.conf")
    assert done.returncode == 0, done.stderr
    assert "nowhere.conf" in done.stdout
    assert "nowhere.conf" not in done.stdout.replace("nowhere.conf", "", 1)


def test_the_caikit_patch_is_still_needed():
    assert run("import caikit", CONFIG_FILES="nowhere.conf").returncode != 0
