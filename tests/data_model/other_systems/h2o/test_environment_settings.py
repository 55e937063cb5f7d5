from __future__ import annotations

from luthier.data_model.options.option_table import is_option
from luthier.data_model.other_systems.h2o.environment_settings import H2O_ENVIRONMENT_SETTINGS


def test_every_option_that_is_named_exists() -> None:
    named = [each.option for each in H2O_ENVIRONMENT_SETTINGS if each.option]
    assert len(named) == 8
    assert [name for name in named if not is_option(name)] == []


def test_a_setting_that_depends_on_another_names_one_of_the_table() -> None:
    names = {each.name for each in H2O_ENVIRONMENT_SETTINGS}
    leaders = {each.only_if for each in H2O_ENVIRONMENT_SETTINGS if each.only_if}
    assert leaders == {"environment.use_deepspeed"}
    assert leaders <= names
