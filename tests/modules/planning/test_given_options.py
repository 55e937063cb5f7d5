"""Arguments under any of their names, once each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import InvalidInputError, UnknownKeyError, VerbalizerError
from luthier.modules.planning.given_options import (
    given_dataset_options,
    given_training_options,
    resolve_verbalizer,
)
from luthier.modules.planning.hooks import TrainingHooks

DEFAULTS = TrainingOptions(num_epochs=5, learning_rate=2e-5)


def test_a_signatures_default_does_not_fight_with_an_alias():
    options = given_training_options(
        {"learning_rate": 2e-5, "lr": 0.1, "device": "__DETECT__"}, {"weight_decay": 0.0}, DEFAULTS
    )
    assert (options.learning_rate, options.num_epochs, options.weight_decay) == (0.1, 5, 0.0)
    assert options.device is None


def test_dtypes_and_paths_of_python_become_words():
    given = {"torch_dtype": torch.bfloat16, "start_from": Path("first")}
    options = given_training_options(given, {}, DEFAULTS)
    assert (options.torch_dtype, options.start_from) == ("bfloat16", "first")


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ({"seed": 1}, {"seed": 2}, InvalidInputError, "'seed' is given twice"),
        ({"lr": 1.0}, {"learning_rate": 2.0}, InvalidInputError, "'lr' is given twice"),
        ({"sed": 1}, {}, UnknownKeyError, "did you mean 'seed'"),
    ],
)
def test_what_is_given_twice_or_unknown_is_refused(arguments, settings, error, message):
    with pytest.raises(error, match=message):
        given_training_options(arguments, settings, DEFAULTS)


def test_lists_of_a_wire_become_tuples_and_nothing_is_held_out_unasked(here):
    options = given_dataset_options({"data_sample_choice": ["Train"]}, here, TrainingHooks())
    assert (options.data_sample_choice, options.validation_size) == (("Train",), 0.0)


def test_a_template_must_show_something_of_a_record(here):
    assert resolve_verbalizer("Q {{input}}", here, TrainingHooks()) == "Q {{input}}"
    with pytest.raises(VerbalizerError, match="no renderable placeholders"):
        resolve_verbalizer("Q", here, TrainingHooks())
