from __future__ import annotations

from dataclasses import dataclass

import pytest

from luthier.data_model.options.reading import given_options, option_aliases, option_names
from luthier.data_model.options.setting import option
from luthier.errors import InvalidInputError, UnknownKeyError


@dataclass(frozen=True)
class Sizes:
    width: int = option(1, "int", "How wide.", aliases=("w", "breadth"))
    height: int = option(2, "int", "How high.")


def test_other_names_become_ours_and_none_is_left_out() -> None:
    assert given_options({"w": 3, "height": None}, Sizes, what="size") == {"width": 3}


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownKeyError, match="unknown size 'heigth', did you mean 'height'"):
        given_options({"heigth": 3}, Sizes, what="size")


def test_one_option_under_two_names_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'width' and 'breadth' are the same option"):
        given_options({"breadth": 3, "width": 3}, Sizes, what="size")


def test_names_and_aliases_come_from_the_fields() -> None:
    assert option_names(Sizes) == ("width", "height")
    assert option_aliases(Sizes) == {"w": "width", "breadth": "width"}
