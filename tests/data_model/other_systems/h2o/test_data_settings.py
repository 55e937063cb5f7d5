from __future__ import annotations

from luthier.data_model.options.option_table import is_option
from luthier.data_model.other_systems.h2o.data_settings import H2O_DATA_SETTINGS

GROUPS = {"dataset", "tokenizer", "augmentation"}


def test_settings_of_the_data_have_the_name_that_they_have_here() -> None:
    named_alike = {
        setting.name: setting.option
        for setting in H2O_DATA_SETTINGS
        if setting.name.partition(".")[0] in GROUPS and setting.has_option
    }
    assert len(named_alike) > 25
    assert all(name == option for name, option in named_alike.items())


def test_every_option_that_is_named_exists_or_is_known_to_be_missing() -> None:
    missing = [
        setting.option
        for setting in H2O_DATA_SETTINGS
        if setting.option and not is_option(setting.option)
    ]
    assert missing == []
