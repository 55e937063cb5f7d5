"""The table of caikit's settings that Luthier does without."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from luthier.config.caikit_keys import CAIKIT_KEYS, find_caikit_key, find_caikit_variable
from luthier.config.settings import all_settings


def test_no_setting_of_ours_is_in_the_table():
    assert [s.key for s in all_settings() if find_caikit_key(s.key)] == []
    assert [s.env_name for s in all_settings() if find_caikit_variable(s.env_name)] == []


def test_each_setting_is_listed_once():
    keys = [entry.key for entry in CAIKIT_KEYS]
    assert len(set(keys)) == len(keys)


def test_advice_names_only_settings_that_exist():
    known = {setting.key for setting in all_settings()}
    known |= {key.rsplit(".", 1)[0] for key in known}
    for entry in CAIKIT_KEYS:
        for word in entry.advice.replace(",", " ").split():
            if "." in word:
                assert word in known, f"{entry.key}: {word}"


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("runtime.library", True),
        ("runtime.metrics.port", True),
        ("runtime.librarian", False),
        ("runtime", False),
    ],
)
def test_a_key_covers_itself_and_what_is_below(key, found):
    assert (find_caikit_key(key) is not None) == found


def leaves(content, path=()):
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, name))
        else:
            yield ".".join((*path, name))


def test_every_default_key_of_caikit_is_ours_or_in_the_table():
    """Whatever a user of caikit has written down is known here or gets a specific answer."""
    folder = Path(importlib.util.find_spec("caikit").submodule_search_locations[0])
    theirs = set(leaves(yaml.safe_load((folder / "config" / "config.yml").read_text())))
    ours = {setting.key for setting in all_settings()}
    assert {key for key in theirs - ours if find_caikit_key(key) is None} == set()
