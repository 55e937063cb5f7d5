from __future__ import annotations

from typing import Any

import pytest

from luthier.data_model.options.experiment import ExperimentOptions
from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.run_options import METHODS
from luthier.errors import (
    InvalidInputError,
    NameNotAllowedError,
    UnknownKeyError,
)

GIVEN: dict[str, Any] = {
    "general": {"method": "lora", "model_name": "m", "base_model": "b"},
    "dataset": {"train_dataframe": "a.csv", "prompt_column": ["q"], "answer_column": "a"},
    "tokenizer": {"max_length": 64},
    "training": {"learning_rate": 1e-3, "epochs": 2},
    "augmentation": {"neftune_noise_alpha": 5},
    "lora": {"r": 4, "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
    "environment": {"seed": 1},
}


def test_groups_are_read_into_their_parts() -> None:
    options = ExperimentOptions.from_dict(GIVEN)
    options.validate()
    assert options.dataset.max_length == 64
    assert options.dataset.prompt_column == ("q",)
    assert options.training.num_epochs == 2
    assert options.training.seed == 1
    assert (options.lora.rank, options.lora.target_modules) == (4, None)
    assert options.value("environment.seed") == 1


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_given_is_the_methods_default(method: str) -> None:
    options = ExperimentOptions.from_dict({"general": {"method": method}})
    assert options == ExperimentOptions.defaults(method)
    epochs = {"lora": 3, "head": 3, "full_fine_tuning": 5}.get(method, 20)
    assert options.training.num_epochs == epochs


def test_one_name_is_a_list_of_one_where_a_list_is_wanted() -> None:
    changes = {
        "dataset": {**GIVEN["dataset"], "prompt_column": "q"},
        "prediction": {"metrics": "loss"},
    }
    options = ExperimentOptions.from_dict({**GIVEN, **changes})
    options.validate()
    assert options.dataset.prompt_column == ("q",)
    assert options.training.metrics == ("loss",)
    assert options.lora.target_modules is None  # PEFT's word for all of them
    again = options.laid_over({"dataset.prompt_column": "p", "dataset.answer_column": "q"})
    assert (again.dataset.prompt_column, again.dataset.answer_column) == (("p",), "q")


def test_what_a_tuning_is_called_and_stands_on_must_be_named() -> None:
    options = ExperimentOptions.from_dict(GIVEN)
    options.require_named()
    nameless = options.laid_over({"general.model_name": ""})
    nameless.require_named(has_result=False)
    with pytest.raises(InvalidInputError, match=r"'general\.model_name' is missing"):
        nameless.require_named()
    with pytest.raises(InvalidInputError, match=r"'general\.base_model' is missing"):
        options.laid_over({"general.base_model": ""}).require_named(has_result=False)
    with pytest.raises(NameNotAllowedError, match="model_name"):
        options.laid_over({"general.model_name": "../m"}).require_named()


def test_a_head_has_options_of_its_own_and_of_the_lora_below_it() -> None:
    content = {"general": {"method": "head"}, "head": {"labels": ["b", "a"]}, "lora": {"r": 4}}
    options = ExperimentOptions.from_dict(content)
    options.validate()
    assert (options.head.labels, options.lora.rank) == (("b", "a"), 4)
    assert options.training.metrics == ("loss", "accuracy", "macro_f1")
    alone = options.laid_over({"head.use_lora": False})
    with pytest.raises(InvalidInputError, match=r"'head\.use_lora' is false and there are options"):
        alone.validate()
    other = ExperimentOptions.from_dict({**content, "general": {"method": "lora"}})
    with pytest.raises(InvalidInputError, match=r"'head\.labels' has no use with method lora"):
        other.validate()


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_mapping_read_back_is_the_same_object(is_complete: bool) -> None:
    options = ExperimentOptions.from_dict(GIVEN)
    content = options.to_dict(is_complete=is_complete)
    assert ExperimentOptions.from_dict(content) == options
    assert ("adam_beta1" in content["training"]) == is_complete


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"training": {"learning_rat": 1}},
            "'training.learning_rat', did you mean 'training.learning_rate'",
        ),
        (
            {"training": {"max_length": 1}},
            "'training.max_length', did you mean 'tokenizer.max_length'",
        ),
        ({"trainin": {}}, "unknown group 'trainin', did you mean 'training'"),
        ({"num_epochs": 3}, "did you mean 'training.num_epochs'"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownKeyError, match=message):
        ExperimentOptions.from_dict(given)


def test_an_option_given_under_two_names_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'training\.lr' and 'training\.learning_rate'"):
        ExperimentOptions.from_dict({"training": {"learning_rate": 1, "lr": 2}})


def test_a_group_that_holds_no_names_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'training' must hold names and values, got 3"):
        ExperimentOptions.from_dict({"training": 3})


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"general\.method.*did you mean 'lora'"):
        ExperimentOptions.from_dict({"general": {"method": "lara"}})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training.learning_rate", 0, r"'training\.learning_rate' must be greater than 0"),
        ("tokenizer.max_source_length", 0, r"'tokenizer\.max_source_length' must be at least 1"),
        ("training.batch_size", 65, r"'training\.batch_size' must be at most 64, got 65"),
        ("architecture.torch_dtype", "float", r"'architecture\.torch_dtype' must be one of"),
        ("augmentation.token_mask_probability", 1, r"must be at most 0\.9"),
        ("tuning_config.num_virtual_tokens", 8, "has no use with method lora"),
        ("lora.rank", 0, r"'lora\.rank' must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_path(path: str, value: object, message: str) -> None:
    options = ExperimentOptions.from_dict(GIVEN).laid_over({path: value})
    with pytest.raises(InvalidInputError, match=message):
        options.validate(TrainingLimits(max_batch_size=64))


def test_lora_options_have_no_use_elsewhere() -> None:
    options = ExperimentOptions.from_dict(
        {"tuning_config": {"num_virtual_tokens": 4}, "lora": {"rank": 4}}
    )
    with pytest.raises(InvalidInputError, match=r"'lora\.rank' has no use with method prompt_tun"):
        options.validate()


def test_rows_that_are_learned_cannot_say_what_is_best() -> None:
    options = ExperimentOptions.from_dict(
        {
            "general": {"method": "lora"},
            "training": {"train_validation_data": True, "save_checkpoint": "best"},
        }
    )
    with pytest.raises(InvalidInputError, match=r"training\.train_validation_data.*best"):
        options.validate()
