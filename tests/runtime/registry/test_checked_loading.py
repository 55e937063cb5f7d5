"""An adapter is checked before it is served, and once only."""

from __future__ import annotations

import gc

import pytest
from fixtures.echo_runtime import EchoLog
from fixtures.train_rows import QUICK, ROWS

import luthier
from luthier.config.loader import load_config
from luthier.errors import ArtifactError
from luthier.modules import LoraTuning, TextGeneration
from luthier.modules.environment import configure
from luthier.modules.text_generation.text_module import TextModule
from luthier.runtime.registry.checked_loading import CheckedLoading


@pytest.fixture
def environment(tiny_base_models_dir):
    yield configure(load_config({"BASE_MODELS_DIR": str(tiny_base_models_dir)}))
    configure(load_config({}))


@pytest.fixture
def checks(monkeypatch):
    made = []
    check = TextModule.check_conformance
    monkeypatch.setattr(
        TextModule, "check_conformance", lambda self: (made.append(self), check(self))
    )
    return made


def saved(tmp_path, num_epochs):
    model = LoraTuning.train("tiny-causal", ROWS, rank=2, **(QUICK | {"num_epochs": num_epochs}))
    model.save(tmp_path / "model")
    model.release()
    return tmp_path / "model"


def test_what_was_checked_is_not_checked_again(environment, checks, tmp_path):
    folder, load = saved(tmp_path, num_epochs=1), CheckedLoading(luthier.load)
    for _ in range(2):
        load(folder).release()
    assert len(checks) == 1
    saved(tmp_path, num_epochs=2)
    load(folder).release()
    assert len(checks) == 2


def test_the_deltas_of_a_served_model_lie_on_disk_between_requests(environment, tmp_path):
    folder = saved(tmp_path, num_epochs=1)
    with_tensors, served = luthier.load(folder), CheckedLoading(luthier.load)(folder)
    assert served.adapter.content_hash() == with_tensors.adapter.content_hash()
    assert served.run("hello").generated_text == with_tensors.run("hello").generated_text
    gc.collect()
    assert served.adapter._kept() is None
    for module in (with_tensors, served):
        module.release()


def test_an_adapter_without_effect_is_refused_and_gives_its_base_model_back(environment, tmp_path):
    folder = saved(tmp_path, num_epochs=0)
    with pytest.raises(ArtifactError, match="has no effect"):
        CheckedLoading(luthier.load)(folder)
    assert environment.base_models.num_loaded == 0


def test_bare_models_and_other_modules_are_just_loaded(environment, checks, tmp_path):
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo" / "config.yml").write_text("x")
    assert CheckedLoading(EchoLog().load)(tmp_path / "echo") is not None
    TextGeneration.bootstrap("tiny-causal").save(tmp_path / "whole")
    CheckedLoading(luthier.load)(tmp_path / "whole").release()
    assert checks == []
