from __future__ import annotations

from luthier.data_model.options.option_table import is_option
from luthier.data_model.other_systems.h2o.training_settings import H2O_TRAINING_SETTINGS

#: Options that settings would become, and that this build does not have. May only shrink.
NOT_BUILT = {"architecture.attention_implementation"}


def test_every_option_that_is_named_exists_or_is_known_to_be_missing() -> None:
    missing = {
        setting.option
        for setting in H2O_TRAINING_SETTINGS
        if setting.option and not is_option(setting.option)
    }
    assert missing <= NOT_BUILT


def test_a_setting_that_depends_on_another_names_one_of_the_table() -> None:
    names = {setting.name for setting in H2O_TRAINING_SETTINGS}
    leaders = {
        setting.only_if.removeprefix("not ") for setting in H2O_TRAINING_SETTINGS if setting.only_if
    }
    assert leaders
    assert leaders <= names
