"""The folder of a model: whole, or not there; read with suspicion."""

import pytest
import yaml

from luthier.errors import ArtifactError
from luthier.modules import TextGeneration
from luthier.modules.saving.history import NO_HISTORY
from luthier.modules.saving.saved_model import (
    read_config,
    text_of,
    wants_clean_spaces,
    writing_model,
)


@pytest.fixture
def module(here):
    model = TextGeneration.bootstrap("tiny-causal")
    yield model
    model.release()


def write(module, target, **config):
    with writing_model(module, target, config=config, history=NO_HISTORY) as folder:
        (folder / "weights.bin").write_bytes(b"12345")


def test_the_config_names_the_module_as_caikits_do(module, tmp_path):
    write(module, tmp_path / "model", verbalizer="{{input}}")
    config = read_config(tmp_path / "model")
    assert config["module_id"] == "f9181353-4ccf-4572-bd1e-f12bcda26792"
    assert (config["name"], config["version"]) == ("Text Generation", "0.1.0")
    assert config["verbalizer"] == "{{input}}"
    assert "luthier_version" in config
    assert "caikit_nlp_version" not in config


def test_nothing_stands_there_before_it_is_complete(module, tmp_path):
    target = tmp_path / "model"
    with writing_model(module, target, config={}, history=NO_HISTORY):
        assert not target.exists()
    assert sorted(path.name for path in target.iterdir()) == [
        "config.yml",
        "manifest.json",
        "training_logs.jsonl",
    ]


def test_an_error_leaves_nothing(module, tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        writing_model(module, tmp_path / "model", config={}, history=NO_HISTORY),
    ):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_since_is_found(module, tmp_path):
    write(module, tmp_path / "model")
    (tmp_path / "model" / "weights.bin").write_bytes(b"12346")
    with pytest.raises(ArtifactError, match=r"weights\.bin"):
        read_config(tmp_path / "model")


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"- 1\n- 2\n", b"a: [", b"\xff\xfe", b"module_id: 7", b"name: x",
     b"module_id: !!python/object/apply:os.system ['true']", b"x" * (5 << 20)],
)  # fmt: skip
def test_a_config_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.yml").write_bytes(content)
    with pytest.raises(ArtifactError):
        read_config(tmp_path)


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(ArtifactError, match="no saved model"):
        read_config(tmp_path)
    with pytest.raises(ArtifactError, match="no saved model"):
        read_config(tmp_path / "missing")


def test_texts_of_a_config_are_texts():
    assert text_of({"a": "b"}, "a") == "b"
    assert text_of({}, "a", default="c") == "c"
    for config in ({}, {"a": 5}, {"a": None}):
        with pytest.raises(ArtifactError, match="'a'"):
            text_of(config, "a")


def test_only_caikit_nlps_models_are_cleaned_up_by_themselves():
    assert wants_clean_spaces({"caikit_nlp_version": "0.5.15"})
    assert not wants_clean_spaces({"luthier_version": "0.1.0"})
    assert wants_clean_spaces({"luthier_version": "0.1.0", "clean_up_spaces": True})


def test_a_written_config_is_plain_yaml(module, tmp_path):
    write(module, tmp_path / "model")
    text = (tmp_path / "model" / "config.yml").read_text("utf-8")
    assert yaml.safe_load(text)["training_logs"] == "training_logs.jsonl"
