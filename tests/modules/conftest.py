"""Modules in an environment that finds the tiny base models, and a tuned prompt to run."""

import pytest
from fixtures.train_rows import QUICK, ROWS, VERBALIZER

from luthier.config import load_config
from luthier.modules import PeftPromptTuning
from luthier.modules import environment as environment_module
from luthier.modules.environment import configure


@pytest.fixture(scope="session")
def environ(tiny_base_models_dir):
    """The environment variables of a server that has the tiny base models."""
    return {"BASE_MODELS_DIR": str(tiny_base_models_dir)}


@pytest.fixture(scope="package")
def here(environ):
    """The process's environment, with the tiny base models."""
    yield configure(load_config(environ))
    configure(load_config({}))


@pytest.fixture(autouse=True)
def same_environment_for_each_test(here, monkeypatch):
    """Whatever a test configures is gone after it."""
    monkeypatch.setattr(environment_module, "_current", here)


@pytest.fixture
def configured(environ, monkeypatch):
    """Replaces the process's environment for one test."""
    monkeypatch.setattr(environment_module, "_current", environment_module._current)
    return lambda **variables: configure(load_config(environ | variables))


@pytest.fixture(scope="package", params=["tiny-causal", "tiny-seq2seq"])
def tuned(request, here):
    """A tuned prompt on each kind of base model. Read only, please."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment_module, "_current", here)
        model = PeftPromptTuning.train(
            request.param, ROWS, {"num_virtual_tokens": 5}, verbalizer=VERBALIZER, **QUICK
        )
    yield model
    model.release()
