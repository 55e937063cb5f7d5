"""Hyperparameters: ranges, names in other systems, and what is refused."""

import dataclasses

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


def test_the_servers_limits_count() -> None:
    with pytest.raises(InvalidInputError, match="'batch_size' must be at most 4, got 8"):
        TrainingOptions().validate(TrainingLimits(max_batch_size=4))


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
