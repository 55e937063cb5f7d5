from __future__ import annotations

import dataclasses

from luthier.data_model.options.option_table import is_option
from luthier.data_model.other_systems.foreign_setting import Status
from luthier.data_model.other_systems.h2o.prediction_settings import H2O_PREDICTION_SETTINGS
from luthier.data_model.sampling import SamplingParams


def test_every_option_that_is_named_exists() -> None:
    named = [each.option for each in H2O_PREDICTION_SETTINGS if each.option]
    assert len(named) == 4
    assert [name for name in named if not is_option(name)] == []


def test_what_a_request_for_text_brings_has_the_name_that_it_has_there() -> None:
    parameters = {field.name for field in dataclasses.fields(SamplingParams)}
    ours = {
        each.reason.partition(":")[0]
        for each in H2O_PREDICTION_SETTINGS
        if each.status is Status.REPLACED and "given with each request" in each.reason
    }
    assert len(ours) == 9
    assert ours <= parameters
