"""Any saved model loads through one function, and through caikit's."""

import caikit
import pytest

import luthier
from luthier.errors import ArtifactError, NotSupportedError
from luthier.modules import PeftPromptTuning, TextGeneration
from luthier.modules.service_package import service_packages


@pytest.fixture
def folder(tuned, tmp_path):
    tuned.save(tmp_path / "tuned")
    TextGeneration.bootstrap(tuned.base_model).save(tmp_path / "whole")
    return tmp_path


@pytest.mark.parametrize(("name", "kind"), [("tuned", PeftPromptTuning), ("whole", TextGeneration)])
def test_the_config_says_which_module_it_is(folder, name, kind):
    assert type(luthier.load(folder / name)) is kind


def test_caikit_loads_it_too(folder, tuned):
    service_packages()  # configures caikit for our library
    model = caikit.load(str(folder / "tuned"))
    assert model.run("hello").generated_text == tuned.run("hello").generated_text


def test_a_module_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "config.yml").write_text("module_id: 6759e891-287b-405b-bd8b-54a4a4d51c24\n")
    with pytest.raises(NotSupportedError, match="known are HeadTuning, LoraTuning, PeftP"):
        luthier.load(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ArtifactError):
        luthier.load(tmp_path / "nothing")
