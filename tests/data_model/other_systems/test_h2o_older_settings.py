from __future__ import annotations

from luthier.data_model.other_systems.foreign_setting import ABSENT, Status
from luthier.data_model.other_systems.h2o_older_settings import H2O_OLDER_SETTINGS
from luthier.data_model.other_systems.importing import Fate, System, import_experiment


def test_older_settings_count_only_where_they_are_given() -> None:
    assert all(setting.default is ABSENT for setting in H2O_OLDER_SETTINGS)


def test_reinforcement_learning_is_named_as_what_it_is() -> None:
    ppo = [setting for setting in H2O_OLDER_SETTINGS if "ppo" in setting.name]
    assert {setting.state for setting in ppo} == {Status.PREFERENCE}


def test_a_cap_of_one_part_is_harmless_where_the_whole_implies_it() -> None:
    for cap, fate in ((512, Fate.IGNORED), (256, Fate.REFUSED)):
        imported = import_experiment(
            {"llm_backbone": "b", "tokenizer": {"max_length_prompt": cap, "max_length": 512}},
            System.H2O,
        )
        assert next(line.fate for line in imported.report if line.name.endswith("_prompt")) is fate
