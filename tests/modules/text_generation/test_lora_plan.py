"""What a LoRA tuning may be asked for."""

import dataclasses
import inspect

import pytest
from fixtures.train_rows import ROWS

from luthier.data_model.options.lora import LoraConfig
from luthier.errors import (
    InvalidInputError,
    TrainingDataError,
    UnknownKeyError,
    VerbalizerError,
)
from luthier.modules import LoraTuning


def plan(**arguments):
    return LoraTuning.plan_train(base_model="tiny-causal", train_stream=ROWS, **arguments)


def test_what_is_left_out_is_the_default():
    made = plan()
    assert made.lora == LoraConfig()
    options = made.options
    assert (options.num_epochs, options.learning_rate, options.accumulate_steps) == (3, 2e-4, 1)
    assert (options.batch_size, options.verbalizer, options.seed) == (8, "{{input}}", 73)


def test_options_of_lora_and_of_the_loop_are_told_apart_under_any_name():
    made = plan(
        r=4, lora_alpha=32, lora_dropout=0.1, target_modules=["q_proj"], lr=0.01, epochs=2,
        layers_to_transform=[0],
    )  # fmt: skip
    assert made.lora == LoraConfig(
        rank=4, alpha=32, dropout=0.1, target_modules=("q_proj",), layers_to_transform=(0,)
    )
    assert (made.options.learning_rate, made.options.num_epochs) == (0.01, 2)


def test_a_default_and_an_alias_do_not_quarrel_and_two_values_do():
    assert plan(rank=8, r=4).lora.rank == 4
    with pytest.raises(InvalidInputError, match="'r' and 'rank' are the same option"):
        plan(rank=16, r=4)


def test_patterns_are_a_list_on_the_wire_and_a_mapping_in_python():
    as_list = plan(rank_pattern=["q_proj=4", r"layers\.0\..*=2"], alpha_pattern=["q_proj=2.5"])
    as_mapping = plan(
        rank_pattern={"q_proj": 4, r"layers\.0\..*": 2}, alpha_pattern={"q_proj": 2.5}
    )
    assert as_list.lora == as_mapping.lora
    assert dict(as_list.lora.rank_pattern) == {"q_proj": 4, r"layers\.0\..*": 2}


def test_every_option_is_an_argument_and_so_on_the_wire():
    arguments = inspect.signature(LoraTuning.train).parameters
    for field in dataclasses.fields(LoraConfig):
        assert field.name in arguments
        given = arguments[field.name].default
        assert given is None or given == field.default


def test_lists_and_starts_come_with_a_request():
    made = plan(
        from_request=True,
        target_modules=["q_proj"],
        layers_to_transform=[0],
        layers_pattern=["layers"],
        trainable_token_indices=[5, 7],
        initialisation="eva",
        start_batches=2,
        eva_rho=3.0,
    ).lora
    assert (made.layers_to_transform, made.layers_pattern) == ((0,), ("layers",))
    assert made.trainable_token_indices == (5, 7)
    assert (made.initialisation, made.start_batches, made.eva_rho) == ("eva", 2, 3.0)


def test_an_empty_list_is_one_that_nobody_sent():
    assert plan(target_modules=[], modules_to_save=[], rank_pattern=[]).lora == LoraConfig()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, InvalidInputError, "'rank' must be at least 1, got 0"),
        ({"rank": 10**6}, InvalidInputError, "'rank' must be at most 1024"),
        ({"rank": 8.0}, InvalidInputError, "'rank' must be int"),
        ({"alpha": float("nan")}, InvalidInputError, "'alpha' must be finite"),
        ({"dropout": 1.5}, InvalidInputError, "'dropout' must be at most 0.99"),
        ({"initialisation": "evva"}, InvalidInputError, "'evva', did you mean 'eva'"),
        ({"rank_pattern": ["q_proj"]}, InvalidInputError, "must list 'name=number'"),
        ({"rank_pattern": ["q=4", "q=5"]}, InvalidInputError, "each name once, got 'q=5'"),
        ({"rank_pattern": ["q=four"]}, InvalidInputError, "'four' of 'q' is not a number"),
        ({"alpha_pattern": ["q=inf"]}, InvalidInputError, r"'alpha_pattern\[q\]' must be finite"),
        ({"rnk": 4}, UnknownKeyError, "'rnk', did you mean 'rank'"),
        ({"tuning_config": {}}, UnknownKeyError, "'tuning_config'"),
        ({"num_epochs": -1}, InvalidInputError, "'num_epochs' must be at least 0"),
        ({"verbalizer": "no field"}, VerbalizerError, "placeholder"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_weight_is_read(arguments, error, message):
    with pytest.raises(error, match=message):
        plan(from_request=True, **arguments)


def test_empty_data_is_refused():
    with pytest.raises(TrainingDataError, match="train_stream cannot be empty"):
        LoraTuning.plan_train(base_model="tiny-causal", train_stream=[])


def test_the_largest_rank_of_a_request_is_the_operators_to_say(configured):
    configured(TRAINING_LIMITS_MAX_LORA_RANK="16")
    assert plan(rank=16, from_request=True).lora.rank == 16
    assert plan(rank=17).lora.rank == 17
    for given in ({"rank": 17}, {"rank_pattern": {"q_proj": 17}}):
        with pytest.raises(InvalidInputError, match="must be at most 16, got 17"):
            plan(from_request=True, **given)
