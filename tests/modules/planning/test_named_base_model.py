"""Which base model is meant, found without its weights."""

import json
import shutil

import pytest
from fixtures.train_plans import plan, plan_request
from fixtures.train_rows import ROWS

from luthier.errors import (
    ArtifactError,
    BaseModelNotFoundError,
    NameNotAllowedError,
    NotSupportedError,
)
from luthier.resources.base_model import BaseModel


@pytest.fixture(autouse=True)
def here(configured):
    """An environment of each test's own, in which a plan loads nothing."""
    own = configured()
    yield own
    assert own.base_models.num_loaded == 0


@pytest.mark.parametrize("base", ["tiny-causal", "tiny-seq2seq"])
def test_a_plan_knows_the_kind_from_the_config_alone(base):
    made = plan(base_model=base)
    assert (made.base_model_name, made.kind) == (base, base.removeprefix("tiny-"))
    assert len(made.records) == len(ROWS)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../b", "a\0b", "x" * 10_000, "", "~/x", "\\x", "con", "a b"]
)
def test_names_that_leave_the_folder_are_refused_for_a_request(name):
    with pytest.raises(NameNotAllowedError) as caught:
        plan_request(base_model=name)
    assert len(str(caught.value)) < 400


def test_an_absolute_path_is_refused_for_a_request_and_works_in_python(tiny_causal_dir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_causal_dir, elsewhere)
    assert plan(base_model=str(elsewhere)).kind == "causal"
    with pytest.raises(NameNotAllowedError):
        plan_request(base_model=str(elsewhere))


def test_a_name_from_a_request_is_no_folder_of_the_working_directory(
    tiny_causal_dir, tmp_path, monkeypatch
):
    shutil.copytree(tiny_causal_dir, tmp_path / "trap")
    monkeypatch.chdir(tmp_path)
    assert plan(base_model="trap").kind == "causal"
    with pytest.raises(BaseModelNotFoundError):
        plan_request(base_model="trap")


def test_a_base_model_that_generates_nothing_is_refused(configured, tiny_causal_dir, tmp_path):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), "utf-8")
    configured(BASE_MODELS_DIR=str(tmp_path))
    with pytest.raises(NotSupportedError, match="bert"):
        plan(base_model="bert")
    (folder / "config.json").write_text("{", "utf-8")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        plan(base_model="bert")


def test_an_in_memory_model_is_found_by_its_name(here):
    with here.base_models.acquire("tiny-causal") as loaded:
        resource = BaseModel.from_memory(loaded.model, loaded.tokenizer, name="in-memory")
        here.base_models.add(resource)
        try:
            assert plan(base_model="in-memory").kind == "causal"
        finally:
            here.base_models.remove("in-memory")
