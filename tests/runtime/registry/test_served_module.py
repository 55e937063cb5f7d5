"""Our modules keep the contract of a served module."""

from __future__ import annotations

import inspect

import pytest

from luthier.modules import PeftPromptTuning, TextGeneration
from luthier.runtime.registry.served_module import ServedModule

PROMISED = [name for name in vars(ServedModule) if inspect.isfunction(getattr(ServedModule, name))]


@pytest.mark.parametrize("module_class", [PeftPromptTuning, TextGeneration])
@pytest.mark.parametrize("name", [name for name in PROMISED if not name.startswith("_")])
def test_every_promised_method_is_there_and_of_the_promised_kind(module_class, name):
    promised, found = getattr(ServedModule, name), getattr(module_class, name)
    assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(promised)


@pytest.mark.parametrize("module_class", [PeftPromptTuning, TextGeneration])
def test_a_module_has_an_id_and_a_name(module_class):
    assert module_class.MODULE_ID and module_class.MODULE_NAME
