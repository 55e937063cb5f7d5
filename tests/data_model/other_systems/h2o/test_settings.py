from __future__ import annotations

import html
from typing import Any

import pytest
from fixtures.reference_settings import reference_rows

from luthier.config.yaml_text import parse_yaml
from luthier.data_model.other_systems.foreign_setting import ABSENT, ForeignSetting, Status
from luthier.data_model.other_systems.h2o.settings import H2O_SETTINGS

BY_NAME = {setting.name: setting for setting in H2O_SETTINGS}
#: Their defaults are a model or a folder of their own, or belong to other kinds of problem.
OWN_DEFAULTS = {
    "experiment_name",
    "llm_backbone",
    "output_directory",
    "dataset.rejected_answer_column",
    "dataset.train_dataframe",
    "dataset.validation_dataframe",
}
PROBLEM_TYPE_WORDS = ("C", "D", "S", "K", "R", "P")


def test_no_setting_stands_twice() -> None:
    rows = [(setting.name, setting.option) for setting in H2O_SETTINGS]
    assert len(set(rows)) == len(rows)
    several = {name for name, _ in rows if sum(row[0] == name for row in rows) > 1}
    assert several == {"architecture.backbone_dtype"}


def test_every_setting_of_the_newest_version_is_known_with_its_default() -> None:
    wrong = {}
    for _, key, _, default, *_ in reference_rows(1):
        setting = BY_NAME.get(key)
        if setting is None:
            wrong[key] = "unknown"
        elif key not in OWN_DEFAULTS and plain(setting.default) != parsed(default):
            wrong[key] = f"default {setting.default!r}, not {default!r}"
    assert wrong == {}


def test_seq2seq_defaults_are_known() -> None:
    wrong = {}
    for _, key, _, default, *_ in reference_rows(1):
        for part in html.unescape(default).split(";")[1:]:
            kinds, _, value = part.strip().partition(": ")
            if "S" in kinds and set(kinds) <= set(PROBLEM_TYPE_WORDS):
                found = BY_NAME[key].seq2seq_default
                if key not in OWN_DEFAULTS and plain(found) != parsed(value):
                    wrong[key] = found
    assert wrong == {}


def test_every_older_setting_is_known() -> None:
    missing = []
    for name, key, *_ in reference_rows(3):
        if name.startswith("P-type"):
            continue
        if key == "environment.deepspeed_…":
            names = [each.name for each in H2O_SETTINGS if each.default is ABSENT]
            assert sum(name.startswith("environment.deepspeed_") for name in names) == 3
            continue
        key = key.partition(",")[0]
        if key not in BY_NAME:
            missing.append(key)
    assert missing == []


@pytest.mark.parametrize("setting", H2O_SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_works_or_says_why_not(setting: ForeignSetting) -> None:
    if setting.state is Status.REPLACED or setting.state is Status.NOT_OFFERED:
        assert setting.reason
    if setting.state is Status.WORKS:
        assert setting.option


def parsed(cell: str) -> Any:
    """A default as the list writes it."""
    text = html.unescape(cell).split(";")[0].strip()
    if text in ("(empty)", "None"):
        return None
    if text.startswith("[") or text.replace(".", "").replace("e-", "").lstrip("-").isdigit():
        return parse_yaml(text)
    return {"True": True, "False": False}.get(text, text)


def plain(value: Any) -> Any:
    return None if value in ("", "None", None) else value
