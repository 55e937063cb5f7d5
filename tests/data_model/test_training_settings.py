"""What a train request may set beside caikit-nlp's arguments."""

import dataclasses

import pytest

from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.option_table import OPTIONS
from luthier.data_model.options.reading import option_names
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.training_settings import (
    ARGUMENTS_OF_THEIR_OWN,
    NOT_ON_THE_WIRE,
    TrainingSettings,
    given_settings,
    is_dataset_option,
)
from luthier.data_model.tuning import TuningConfig
from luthier.errors import InvalidInputError, UnknownKeyError
from luthier.modules.service_package import frozen_numbers

LOOP_OPTIONS = {field.name: field for field in dataclasses.fields(TrainingOptions)}
DATASET_OPTIONS = {field.name: field for field in dataclasses.fields(DatasetOptions)}
# Typed here once more on purpose: these numbers are in clients that we do not own.
FROZEN = [
    "schedule", "warmup_steps", "warmup_ratio", "warmup_epochs", "min_learning_rate_ratio",
    "weight_decay", "optimizer", "momentum", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "gradient_checkpointing", "group_by_length", "base_dropout", "loss_function",
    "freeze_layers", "differential_learning_rate_layers", "differential_learning_rate",
    "evaluation_epochs", "evaluate_before_training", "metrics", "max_generated_tokens",
    "early_stopping_patience", "save_checkpoint", "save_every_steps", "keep_checkpoints",
    "prompt_format", "chat_template", "text_system_start", "text_prompt_start",
    "text_answer_separator", "add_eos_token_to_system", "add_eos_token_to_prompt",
    "add_eos_token_to_answer", "mask_prompt_labels", "only_last_answer", "max_length",
    "padding_quantile", "token_mask_probability", "skip_parent_probability",
    "random_parent_probability", "neftune_noise_alpha", "mixed_precision", "quantization",
    "serve_quantized", "start_from", "judge_model", "judge_template", "num_processes", "use_fsdp",
    "save_every_seconds", "checkpoint_time_share", "intermediate_dropout", "max_length_prompt",
    "max_length_answer", "pretrained_weights", "personalize", "chatbot_name", "chatbot_author",
    "validation_size", "data_sample", "data_sample_choice", "split_seed", "train_validation_data",
    "add_prompt_answer_tokens",
]  # fmt: skip


def test_field_numbers_never_change():
    fields = TrainingSettings.get_proto_class().DESCRIPTOR.fields
    found = {field.name: field.number for field in fields}
    assert found.items() >= {name: number for number, name in enumerate(FROZEN, start=1)}.items()
    assert TrainingSettings.get_proto_class().DESCRIPTOR.full_name == (
        "caikit_data_model.luthier.TrainingSettings"
    )


@pytest.mark.parametrize("name", dict.fromkeys(option.name for option in OPTIONS))
def test_every_option_of_a_file_is_in_a_request_or_has_a_reason(name: str) -> None:
    """In one place: a message that all train requests have, a field of its own, or the reasons."""
    (option,) = (option for option in OPTIONS if option.name == name)
    places = {
        "training": (*TrainingSettings.fields, *ARGUMENTS_OF_THEIR_OWN),
        "dataset": TrainingSettings.fields,
        "lora": frozen_numbers()["TextGenerationTaskLoraTuningTrainParameters"],
        "tuning_config": TuningConfig.fields,
        "general": ("base_model", "model_name"),
        "head": frozen_numbers()["TextClassificationTaskHeadTuningTrainParameters"],
    }[option.part]
    assert [name in places, name in NOT_ON_THE_WIRE].count(True) == 1, option.path


def test_a_heads_request_has_every_option_of_the_lora_below_it() -> None:
    """But those of starts that look at text which the base model writes: a head refuses them."""
    starts = ("start_batches", "eva_", "corda_", "lora_ga_")
    fields = frozen_numbers()["TextClassificationTaskHeadTuningTrainParameters"]
    missing = [name for name in option_names(LoraConfig) if name not in fields]
    assert [name for name in missing if not name.startswith(starts)] == []


def test_every_reason_is_that_of_an_option() -> None:
    names = {option.name for option in OPTIONS}
    assert [name for name in NOT_ON_THE_WIRE if name not in names] == []
    assert [why for why in NOT_ON_THE_WIRE.values() if len(why.split()) < 4] == []


@pytest.mark.parametrize("name", ARGUMENTS_OF_THEIR_OWN)
def test_arguments_of_their_own_are_fields_of_each_request_that_has_a_use_for_them(
    name: str,
) -> None:
    lacks = {
        "TextGenerationTaskTextGenerationTrainParameters": {
            # Frozen as caikit-nlp has them: the device is the server's, and nobody sees a bar.
            *("device", "silence_progress_bars"),
        },
        "TextClassificationTaskHeadTuningTrainParameters": {"max_target_length"},
    }
    (field,) = (each for each in dataclasses.fields(TrainingOptions) if each.name == name)
    names = {name, *field.metadata["setting"].aliases}
    for message, fields in frozen_numbers().items():
        if message.endswith("TrainParameters") and name not in lacks.get(message, ()):
            assert names & fields.keys(), message


def test_every_setting_is_an_option_of_its_kind():
    types = {"int": int, "number": float, "bool": bool, "text": str, "choice": str}
    for name in TrainingSettings.fields:
        option = LOOP_OPTIONS.get(name) or DATASET_OPTIONS[name]
        kind = option.metadata["setting"].kind
        expected = types.get(kind, str)
        field = TrainingSettings.get_proto_class().DESCRIPTOR.fields_by_name[name]
        assert field.is_repeated == (kind not in types), name
        assert field.cpp_type in _CPP_TYPES[expected], name


_CPP_TYPES = {int: {2}, float: {5}, bool: {7}, str: {9}}


def test_what_nobody_sent_is_not_there_and_zero_is():
    sent = TrainingSettings(weight_decay=0.0, add_eos_token_to_answer=False, metrics=["loss"])
    got = TrainingSettings.from_proto(sent.to_proto())
    expected = {"weight_decay": 0.0, "add_eos_token_to_answer": False, "metrics": ["loss"]}
    assert given_settings(got) == expected
    assert given_settings(TrainingSettings.from_json(expected)) == expected
    assert given_settings(None) == {}


def test_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(UnknownKeyError, match=r"training_options\.wieght_decay.*'weight_decay'"):
        given_settings({"wieght_decay": 0.1})


def test_an_option_under_two_names_is_refused():
    with pytest.raises(InvalidInputError, match="'max_grad_norm' under two names"):
        given_settings({"max_grad_norm": 1.0, "gradient_clip": 1.0})


def test_settings_that_are_no_mapping_are_refused():
    with pytest.raises(InvalidInputError, match="must be a TrainingSettings or a mapping, got int"):
        given_settings(3)


def test_options_of_the_data_are_told_from_those_of_the_loop():
    assert is_dataset_option("mask_prompt_labels")
    assert not is_dataset_option("weight_decay")
