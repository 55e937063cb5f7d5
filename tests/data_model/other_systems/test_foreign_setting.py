from __future__ import annotations

import pytest

from luthier.data_model.other_systems.foreign_setting import (
    ForeignSetting,
    Refusal,
    Status,
    always,
    as_choice,
    never,
    only,
)


def test_a_setting_works_where_its_option_exists() -> None:
    assert ForeignSetting("a", 1, "training.learning_rate").state is Status.WORKS
    assert ForeignSetting("a", 1, "training.nothing").state is Status.NOT_BUILT
    assert ForeignSetting("a", 1, status=Status.REPLACED).state is Status.REPLACED


@pytest.mark.parametrize("off", [None, "None", "", [], False])
def test_a_setting_has_no_effect_while_its_leader_is_off(off: object) -> None:
    follower = ForeignSetting("a", 1, only_if="b")
    reverse = ForeignSetting("a", 1, only_if="not b")
    assert not follower.has_effect({"b": off})
    assert reverse.has_effect({"b": off})
    assert follower.has_effect({"b": True})
    assert not reverse.has_effect({"b": True})


def test_a_word_becomes_the_choice_that_is_spelled_alike() -> None:
    convert = as_choice("training.schedule")
    assert convert("Cosine", {}) == "cosine"
    assert isinstance(convert("Cubic", {}), Refusal)


def test_harmless_values() -> None:
    assert always(1, {})
    assert not never(1, {})
    assert only(1, None)(None, {})
    assert not only(1)(2, {})
