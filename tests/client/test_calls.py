from pathlib import Path

import pytest

from luthier.client import calls
from luthier.errors import InvalidInputError, UnknownKeyError


def test_generate_sends_only_the_parameters_that_were_given() -> None:
    call = calls.generate("m", "hi", max_new_tokens=3, seed=None, stop_sequences=["."])
    assert call.body == {
        "model_id": "m",
        "inputs": "hi",
        "parameters": {"max_new_tokens": 3, "stop_sequences": ["."]},
    }


def test_generate_without_parameters_sends_none() -> None:
    assert calls.generate("m", "hi").body == {"model_id": "m", "inputs": "hi"}


def test_several_answers_are_asked_for_beside_the_parameters() -> None:
    call = calls.generate_many("m", "hi", 3, decoding_method="SAMPLING")
    assert call.path == "/api/v1/task/text-generations"
    assert call.body == {
        "model_id": "m",
        "inputs": "hi",
        "parameters": {"decoding_method": "SAMPLING"},
        "n": 3,
    }
    texts = call.read({"results": [{"generated_text": "a", "seed": 4}, {"generated_text": "b"}]})
    assert [(text.text, text.seed) for text in texts] == [("a", 4), ("b", None)]


def test_unknown_generation_parameter_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownKeyError, match="'max_new_token', did you mean 'max_new_tokens'"):
        calls.generate("m", "hi", max_new_token=3)


def test_length_penalty_may_be_a_pair() -> None:
    call = calls.generate("m", "hi", exponential_decay_length_penalty=(5, 1.1))
    assert call.body is not None
    penalty = call.body["parameters"]["exponential_decay_length_penalty"]
    assert penalty == {"start_index": 5, "decay_factor": 1.1}


def test_deploy_sends_every_file_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yml").write_text("module_id: x")
    (tmp_path / "adapter" / "weights.safetensors").write_bytes(b"\0")
    call = calls.deploy("m", tmp_path)
    assert [name for _, (name, _) in call.files] == ["adapter/weights.safetensors", "config.yml"]
    assert call.fields == {"model_id": "m"}


def test_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"holds no config\.yml"):
        calls.deploy("m", tmp_path)
