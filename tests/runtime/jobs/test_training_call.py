"""From a spec in JSON to the arguments of a module's ``train``."""

from __future__ import annotations

import pytest
from caikit.core.data_model import DataStream

from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.data_model.tuning import TuningConfig
from luthier.errors import InvalidInputError, UnknownKeyError
from luthier.modules import PeftPromptTuning
from luthier.runtime.jobs.training_call import (
    as_arguments,
    module_class_of,
    num_processes_of,
    record_class_of,
    train_argument_types,
)


def test_a_structured_parameter_becomes_its_data_object():
    given = {"tuning_config": {"num_virtual_tokens": 4, "output_model_types": ["DECODER"]}}
    arguments = as_arguments(given, {"tuning_config": TuningConfig | None})
    assert isinstance(arguments["tuning_config"], TuningConfig)
    assert arguments["tuning_config"].num_virtual_tokens == 4
    assert arguments["tuning_config"].output_model_types == ["DECODER"]


def test_plain_parameters_stay_as_they_are():
    assert as_arguments({"num_epochs": 3, "base_model": "x"}, {}) == {
        "num_epochs": 3,
        "base_model": "x",
    }


@pytest.mark.parametrize(
    "kind",
    [
        DataStream[GenerationTrainRecord],
        DataStream[GenerationTrainRecord] | None,
        DataStream[GenerationTrainRecord] | DataStream[ClassificationTrainRecord],
    ],
)
def test_records_have_the_class_of_the_streams_first_member(kind):
    assert record_class_of(kind) is GenerationTrainRecord


def test_a_type_without_a_stream_is_refused():
    with pytest.raises(TypeError):
        record_class_of(str)


def test_a_module_is_found_by_its_id_and_its_types_are_known():
    module_class = module_class_of(PeftPromptTuning.MODULE_ID)
    assert module_class is PeftPromptTuning
    types = train_argument_types(module_class)
    assert record_class_of(types["train_stream"]) is GenerationTrainRecord


def test_an_unknown_module_is_named():
    with pytest.raises(InvalidInputError, match="'nobody'"):
        module_class_of("nobody")


def test_a_job_is_one_process_unless_it_asks_for_more() -> None:
    assert num_processes_of({}) == 1
    assert num_processes_of({"training_options": None}) == 1
    assert num_processes_of({"training_options": {"weight_decay": 0.1}}) == 1
    assert num_processes_of({"training_options": {"num_processes": 3}}) == 3


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(UnknownKeyError, match="num_processes"):
        num_processes_of({"training_options": {"num_proceses": 3}})
