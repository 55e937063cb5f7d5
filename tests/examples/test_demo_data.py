"""The demo's data must be what the demo says it is, or its accuracy means nothing."""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo"))

import make_data


def wording(template: str) -> str:
    """A template without its slots, in small letters."""
    return re.sub(r"\{\w+\}", "", template).casefold().strip(string.punctuation + " ")


@pytest.mark.parametrize(
    ("split", "num_rows"), [("train", make_data.NUM_TRAIN), ("test", make_data.NUM_TEST)]
)
def test_rows_are_enough_all_different_and_evenly_spread(split: str, num_rows: int) -> None:
    rows = make_data.make_rows(split, num_rows=num_rows)
    assert len(rows) == num_rows >= (200 if split == "train" else 60)
    assert len({row["input"].casefold() for row in rows}) == num_rows
    assert set(Counter(row["output"] for row in rows).values()) == {num_rows // 4}


def test_same_seed_same_rows_and_another_seed_others() -> None:
    rows = make_data.make_rows("train", num_rows=40)
    assert rows == make_data.make_rows("train", num_rows=40)
    assert rows != make_data.make_rows("train", num_rows=40, seed=8)


def test_train_and_test_share_no_wording() -> None:
    def wordings(split: str) -> set[str]:
        templates = make_data.TEMPLATES[split]
        return {wording(template) for intent in templates.values() for template in intent}

    assert wordings("train") & wordings("test") == set()
    for slots in (make_data.ITEMS, make_data.DAYS, make_data.AMOUNTS):
        assert set(slots["train"]) & set(slots["test"]) == set()


def test_no_message_gives_its_intent_away() -> None:
    rows = make_data.make_rows("test", num_rows=make_data.NUM_TEST)
    named = [row for row in rows if row["output"] in row["input"].casefold()]
    assert named == []


def test_rows_are_short() -> None:
    rows = make_data.make_rows("train", num_rows=make_data.NUM_TRAIN)
    assert max(len(row["input"]) for row in rows) < 120
