from __future__ import annotations

from dataclasses import dataclass

import pytest

from luthier.data_model.options.reading import NamedOptions, option_aliases, option_names
from luthier.data_model.options.setting import option
from luthier.errors import InvalidInputError, UnknownKeyError


@dataclass(frozen=True)
class Sizes(NamedOptions):
    called = "size"

    width: int = option(1, "int", "How wide.", aliases=("w", "breadth"))
    height: int = option(2, "int", "How high.")
    places: tuple[str, ...] = option((), "names", "Where.")


def test_other_names_become_ours_and_none_takes_the_default() -> None:
    assert Sizes.from_mapping({"w": 3, "height": None}) == Sizes(width=3, height=2)
    assert Sizes.from_mapping({"w": 3}, defaults=Sizes(4, 5)) == Sizes(width=3, height=5)


def test_lists_become_tuples_and_one_name_a_list_of_one() -> None:
    assert Sizes.from_mapping({"places": ["here", "there"]}).places == ("here", "there")
    assert Sizes.from_mapping({"places": "here"}).places == ("here",)


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownKeyError, match="unknown size 'heigth', did you mean 'height'"):
        Sizes.from_mapping({"heigth": 3})


def test_one_option_under_two_names_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'width' and 'breadth' are the same option"):
        Sizes.from_mapping({"breadth": 3, "width": 3})


def test_names_and_aliases_come_from_the_fields() -> None:
    assert option_names(Sizes) == ("width", "height", "places")
    assert option_aliases(Sizes) == {"w": "width", "breadth": "width"}
