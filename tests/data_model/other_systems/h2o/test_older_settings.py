from __future__ import annotations

from luthier.data_model.other_systems.foreign_setting import ABSENT, Status
from luthier.data_model.other_systems.h2o.older_settings import H2O_OLDER_SETTINGS
from luthier.data_model.other_systems.importing import Fate, System, import_experiment


def test_older_settings_count_only_where_they_are_given() -> None:
    assert all(setting.default is ABSENT for setting in H2O_OLDER_SETTINGS)


def test_reinforcement_learning_is_named_as_what_it_is() -> None:
    ppo = [setting for setting in H2O_OLDER_SETTINGS if "ppo" in setting.name]
    assert {setting.state for setting in ppo} == {Status.PREFERENCE}


def test_caps_of_single_parts_stand_beside_that_of_the_whole() -> None:
    lengths = {"max_length_prompt": 256, "max_length_answer": 128, "max_length": 512}
    imported = import_experiment({"llm_backbone": "b", "tokenizer": lengths}, System.H2O)
    fates = {line.name: line.fate for line in imported.report}
    for name, value in lengths.items():
        assert fates[f"tokenizer.{name}"] is Fate.MAPPED
        assert imported.options.value(f"tokenizer.{name}") == value
