"""Hyperparameters: ranges, names in other systems, and what is refused."""

import dataclasses
import math

import pytest

from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.training_options import (
    FULL_FINE_TUNING_DEFAULTS,
    TRAINING_OPTION_ALIASES,
    TRAINING_OPTION_NAMES,
    TrainingOptions,
)
from luthier.errors import InvalidInputError, UnknownKeyError


def test_the_defaults_are_valid() -> None:
    TrainingOptions().validate(TrainingLimits())
    FULL_FINE_TUNING_DEFAULTS.validate(TrainingLimits())


def test_the_defaults_are_caikit_nlps() -> None:
    options = TrainingOptions()
    assert (options.num_epochs, options.learning_rate, options.batch_size) == (20, 0.3, 8)
    assert (options.max_source_length, options.max_target_length) == (256, 128)
    assert (options.accumulate_steps, options.seed, options.verbalizer) == (32, 73, "{{input}}")
    assert FULL_FINE_TUNING_DEFAULTS.learning_rate == 2e-5
    assert FULL_FINE_TUNING_DEFAULTS.num_epochs == 5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_epochs", -1, "'num_epochs' must be at least 0, got -1"),
        ("num_epochs", 10**9, "'num_epochs' must be at most 1000, got 1000000000"),
        ("num_epochs", True, "'num_epochs' must be int, got True"),
        ("num_epochs", 1.5, "'num_epochs' must be int, got 1.5"),
        ("learning_rate", -0.1, "'learning_rate' must be greater than 0, got -0.1"),
        ("learning_rate", 0, "'learning_rate' must be greater than 0, got 0"),
        ("learning_rate", math.nan, "'learning_rate' must be finite, got nan"),
        ("learning_rate", math.inf, "'learning_rate' must be finite, got inf"),
        ("learning_rate", 1e9, "'learning_rate' must be at most 100"),
        ("learning_rate", "0.3", "'learning_rate' must be a number, got '0.3'"),
        ("batch_size", 0, "'batch_size' must be at least 1, got 0"),
        ("batch_size", 10**6, "'batch_size' must be at most 1024"),
        ("accumulate_steps", 0, "'accumulate_steps' must be at least 1"),
        ("max_source_length", 0, "'max_source_length' must be at least 1"),
        ("max_source_length", 10**9, "'max_source_length' must be at most 32768"),
        ("max_target_length", -5, "'max_target_length' must be at least 1"),
        ("seed", -2, "'seed' must be at least -1"),
        ("seed", 2**70, "'seed' must be at most"),
        ("torch_dtype", "float23", "did you mean 'float32'"),
        ("schedule", "linaer", "did you mean 'linear'"),
        ("silence_progress_bars", "yes", "must be true or false"),
        ("weight_decay", math.nan, "'weight_decay' must be finite"),
        ("warmup_ratio", 1.5, "'warmup_ratio' must be at most 1"),
        ("verbalizer", 3, "'verbalizer' must be a string"),
        ("verbalizer", None, "'verbalizer' must be a string"),
        ("verbalizer", "x" * 200_000, "'verbalizer' has 200000 characters"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    options = dataclasses.replace(TrainingOptions(), **{name: value})
    with pytest.raises(InvalidInputError, match=message.replace("(", r"\(")):
        options.validate(TrainingLimits())


def test_the_servers_limits_count() -> None:
    with pytest.raises(InvalidInputError, match="'batch_size' must be at most 4, got 8"):
        TrainingOptions().validate(TrainingLimits(max_batch_size=4))


def test_two_kinds_of_warm_up_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="say the same thing"):
        TrainingOptions(warmup_steps=3, warmup_ratio=0.1).validate(TrainingLimits())


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("lr", "learning_rate", 0.1),
        ("random_seed", "seed", 3),
        ("epochs", "num_epochs", 2),
        ("num_epochs", "num_epochs", 2),
        ("gradient_accumulation_steps", "accumulate_steps", 4),
        ("lr_scheduler_type", "schedule", "cosine"),
        ("disable_tqdm", "silence_progress_bars", False),
    ],
)
def test_names_of_other_systems_are_accepted(alias: str, name: str, value: object) -> None:
    assert getattr(TrainingOptions.from_mapping({alias: value}), name) == value


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownKeyError, match="unknown training option 'num_epoch', did you mean"):
        TrainingOptions.from_mapping({"num_epoch": 3})


def test_an_option_under_two_of_its_names_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'learning_rate' and 'lr' are the same option"):
        TrainingOptions.from_mapping({"lr": 0.1, "learning_rate": 0.2})


def test_none_takes_the_default_that_was_handed_in() -> None:
    options = TrainingOptions.from_mapping({"lr": None}, defaults=FULL_FINE_TUNING_DEFAULTS)
    assert options == FULL_FINE_TUNING_DEFAULTS


def test_no_alias_hides_an_option() -> None:
    assert not set(TRAINING_OPTION_ALIASES) & set(TRAINING_OPTION_NAMES)


def test_every_limit_belongs_to_an_option_the_prompt_lora_or_a_head() -> None:
    limits = {field.name for field in dataclasses.fields(TrainingLimits)}
    used = {field.metadata["setting"].limit for field in dataclasses.fields(TrainingOptions)}
    assert limits - used == {"max_virtual_tokens", "max_lora_rank", "max_classes"}
    assert used - limits == {""}


def test_an_undecided_device_is_told_from_a_given_one() -> None:
    assert not TrainingOptions().is_device_given
    assert not TrainingOptions(device="__DETECT__").is_device_given
    assert TrainingOptions(device="cpu").is_device_given
