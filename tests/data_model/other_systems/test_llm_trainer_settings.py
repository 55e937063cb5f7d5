from __future__ import annotations

from fixtures.reference_settings import reference_rows

from luthier.data_model.other_systems.foreign_setting import Status
from luthier.data_model.other_systems.llm_trainer_settings import LLM_TRAINER_SETTINGS, PRESETS

BY_NAME = {setting.name: setting for setting in LLM_TRAINER_SETTINGS}


def test_every_field_of_the_element_is_known() -> None:
    names = [row[0].removesuffix(" (optional)") for row in reference_rows(5)]
    assert names == list(BY_NAME)


def test_every_field_works_or_says_why_not() -> None:
    silent = [
        setting.name
        for setting in LLM_TRAINER_SETTINGS
        if setting.state is not Status.WORKS and not setting.reason
    ]
    assert silent == []


def test_presets_fill_in_fields() -> None:
    assert len(PRESETS) == 3
    assert all(set(fields) <= set(BY_NAME) for fields in PRESETS.values())
