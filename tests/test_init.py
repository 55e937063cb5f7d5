"""The names at the top of the package."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import luthier


def test_the_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", luthier.__version__)


@pytest.mark.parametrize("name", luthier.__all__)
def test_every_public_name_arrives_on_first_use(name):
    assert getattr(luthier, name) is not None


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'luthier' has no attribute 'nothing'"):
        getattr(luthier, "nothing")  # noqa: B009


def test_importing_the_package_loads_nothing_heavy():
    code = "import luthier, sys; print(sorted({'torch', 'transformers', 'caikit', 'numpy'} & set(sys.modules)))"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
