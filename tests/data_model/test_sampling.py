"""Sampling parameters: made from what callers give, refused with the name, value and limit."""

import dataclasses

import numpy as np
import pytest

from luthier.data_model.generation import ExponentialDecayLengthPenalty
from luthier.data_model.sampling import SAMPLING_FIELDS, SamplingLimits, SamplingParams
from luthier.errors import InvalidInputError, UnknownKeyError

LIMITS = SamplingLimits()


def test_nothing_given_is_the_defaults():
    assert SamplingParams.from_arguments({}) == SamplingParams()


def test_none_is_not_given():
    arguments = dict.fromkeys(SAMPLING_FIELDS)
    assert SamplingParams.from_arguments(arguments) == SamplingParams()


def test_numbers_of_numpy_become_pythons():
    params = SamplingParams.from_arguments(
        {"seed": np.uint64(2**64 - 1), "max_new_tokens": np.int64(3), "top_p": np.float32(0.5)}
    )
    params.validate(LIMITS)
    assert (params.seed, params.max_new_tokens, params.top_p) == (2**64 - 1, 3, 0.5)
    assert type(params.seed) is int
    assert type(params.top_p) is float


def test_an_int_is_accepted_where_a_float_is_expected():
    given = {"top_p": 1, "temperature": 2, "repetition_penalty": 1, "max_time": 5, "typical_p": 1}
    SamplingParams.from_arguments(given).validate(LIMITS)


@pytest.mark.parametrize(
    "penalty",
    [
        (3, 1.5),
        [3, 1.5],
        {"start_index": 3, "decay_factor": 1.5},
        ExponentialDecayLengthPenalty(start_index=3, decay_factor=1.5),
    ],
)
def test_every_form_of_the_decay_penalty_is_a_pair(penalty):
    params = SamplingParams.from_arguments({"exponential_decay_length_penalty": penalty})
    assert params.exponential_decay_length_penalty == (3, 1.5)
    params.validate(LIMITS)


@pytest.mark.parametrize("penalty", [3, (1,), (1, 2, 3), {"start_index": 1}, "ab"])
def test_other_forms_of_the_decay_penalty_are_refused(penalty):
    given = {"exponential_decay_length_penalty": penalty}
    with pytest.raises(InvalidInputError, match="decay"):
        SamplingParams.from_arguments(given).validate(LIMITS)


def test_an_unknown_parameter_is_refused_with_the_nearest_one():
    with pytest.raises(UnknownKeyError, match="'max_new_token', did you mean 'max_new_tokens'"):
        SamplingParams.from_arguments({"max_new_token": 3})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "'max_new_tokens' must be at least 1, got 0"),
        ({"max_new_tokens": 4097}, "'max_new_tokens' must be at most 4096, got 4097"),
        ({"max_new_tokens": 2.0}, "'max_new_tokens' must be int"),
        ({"max_new_tokens": True}, "'max_new_tokens' must be int, got True"),
        ({"min_new_tokens": -1}, "'min_new_tokens' must be at least 0"),
        (
            {"max_new_tokens": 3, "min_new_tokens": 4},
            "Max new tokens needs to be bigger than min new tokens",
        ),
        ({"truncate_input_tokens": -1}, "'truncate_input_tokens' must be at least 0"),
        ({"decoding_method": "BEAM"}, r"Decoding method \[BEAM\] not in valid decoding methods"),
        ({"decoding_method": "greedy"}, "not in valid decoding methods"),
        ({"top_k": -1}, "'top_k'"),
        ({"top_p": 0}, "'top_p' must be greater than 0"),
        ({"top_p": 1.01}, "'top_p' must be at most 1"),
        ({"top_p": float("nan")}, "'top_p' must be finite"),
        ({"top_p": "0.5"}, "'top_p' must be a number"),
        ({"typical_p": 2}, "'typical_p'"),
        ({"temperature": -1}, "'temperature'"),
        ({"temperature": 0, "decoding_method": "SAMPLING"}, "'temperature' must be greater than 0"),
        ({"temperature": float("inf")}, "'temperature' must be finite"),
        ({"repetition_penalty": -0.5}, "'repetition_penalty'"),
        ({"repetition_penalty": 10**400}, "'repetition_penalty'"),
        ({"max_time": 0}, "'max_time' must be greater than 0"),
        ({"max_time": 1e9}, "'max_time' must be at most 3600"),
        ({"seed": -1}, "'seed' must be at least 0"),
        ({"seed": 2**64}, "'seed' must be at most"),
        ({"stop_sequences": "end"}, "'stop_sequences' must be a list"),
        ({"stop_sequences": 5}, "'stop_sequences' must be a list"),
        ({"stop_sequences": ["a"] * 17}, "'stop_sequences' has 17 entries, at most 16"),
        ({"stop_sequences": ["a", ""]}, r"'stop_sequences\[1\]' must be a non-empty string"),
        ({"stop_sequences": ["a" * 257]}, r"'stop_sequences\[0\]' has 257 characters"),
        ({"stop_sequences": [5]}, r"'stop_sequences\[0\]'"),
        ({"min_p": -0.1}, "'min_p' must be at least 0, got -0.1"),
        ({"min_p": 1.5}, "'min_p' must be at most 1, got 1.5"),
        ({"num_beams": 0}, "'num_beams' must be at least 1, got 0"),
        ({"num_beams": 9}, "'num_beams' must be at most 8, got 9"),
        ({"num_beams": 2.0}, "'num_beams' must be int"),
        (
            {"num_beams": 2, "decoding_method": "SAMPLING"},
            "'num_beams' is 2.* 'decoding_method' must be GREEDY, got SAMPLING",
        ),
        ({"length_penalty": float("nan")}, "'length_penalty' must be finite"),
        ({"length_penalty": 101}, "'length_penalty' must be at most 100, got 101"),
        ({"early_stopping": "never"}, "'early_stopping' must be true or false, got 'never'"),
        ({"no_repeat_ngram_size": -1}, "'no_repeat_ngram_size' must be at least 0, got -1"),
        ({"no_repeat_ngram_size": 1.5}, "'no_repeat_ngram_size' must be int"),
        ({"exponential_decay_length_penalty": (-1, 1.5)}, "start_index"),
        ({"exponential_decay_length_penalty": (1, 0)}, "decay_factor"),
        ({"exponential_decay_length_penalty": (1.5, 1)}, "start_index"),
        ({"preserve_input_text": "yes"}, "'preserve_input_text' must be true or false"),
        ({"input_tokens": 1}, "'input_tokens' must be true or false, got 1"),
    ],
)
def test_bad_values_are_refused_by_name_value_and_limit(given, message):
    with pytest.raises(InvalidInputError, match=message):
        SamplingParams.from_arguments(given).validate(LIMITS)


def test_several_answers_differ_in_their_seed_alone():
    params = SamplingParams(decoding_method="SAMPLING", seed=2**64 - 2, top_k=3)
    several = params.several(3, LIMITS)
    assert [each.seed for each in several] == [2**64 - 2, 2**64 - 1, 0]
    assert {dataclasses.replace(each, seed=0) for each in several} == {
        dataclasses.replace(params, seed=0)
    }
    drawn = SamplingParams(decoding_method="SAMPLING").several(2, LIMITS)
    assert drawn[1].seed == drawn[0].seed + 1
    assert SamplingParams().several(1, LIMITS) == [SamplingParams()]


def test_edges_of_every_range_are_accepted():
    for given in (
        {"max_new_tokens": 4096, "min_new_tokens": 4096},
        {"repetition_penalty": 0.0},
        {"temperature": 0},
        {"top_k": 0},
        {"top_p": 1.0, "typical_p": 1e-9},
        {"seed": 0},
        {"stop_sequences": []},
        {"max_time": 3600},
        {"min_p": 0, "no_repeat_ngram_size": 0},
        {"min_p": 1, "num_beams": 8, "length_penalty": -1.5, "early_stopping": True},
    ):
        SamplingParams.from_arguments(given).validate(LIMITS)


def test_the_fields_are_the_wires():
    assert tuple(field.name for field in dataclasses.fields(SamplingParams)) == SAMPLING_FIELDS
    assert len(SAMPLING_FIELDS) == 24
