"""Every setting of the shared list stands in docs/settings.md: as ours, or with the reason."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures.reference_settings import reference_rows

from luthier.data_model.options.option_table import option_at
from luthier.data_model.other_systems.foreign_setting import ForeignSetting
from luthier.data_model.other_systems.importing import (
    SETTINGS_OF,
    System,
    import_experiment,
)
from luthier.errors import LuthierError

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.mark.parametrize(("section", "column"), [(1, 1), (3, 1), (5, 0)])
def test_every_setting_of_the_list_stands_in_the_document(section: int, column: int) -> None:
    rows = documented()
    missing = []
    for cells in reference_rows(section):
        name = cells[column].partition(",")[0].removesuffix(" (optional)")
        if not name or name.endswith("…"):
            continue
        state = rows.get(f"`{name}`")
        if state is None or not (state[1] or state[3] or state[2]):
            missing.append(name)
    assert missing == []


#: What counts as settled for supervised generation; the other words are of other kinds of tuning.
SETTLED = ("works", "replaced", "not offered")


def test_no_setting_of_supervised_generation_is_left_open() -> None:
    """Rows for causal (C) and sequence-to-sequence models (S) work, or say what there is instead;
    those that their screens show in a sentence that a user can act on."""
    rows = documented()
    open_rows = []
    for cells in reference_rows(1):
        kinds, _, hidden = cells[5].partition("(in yaml but hidden in GUI:")
        if not set(kinds + hidden) & set("CS"):
            continue
        ours, state, reason = rows[f"`{cells[1]}`"][1:4]
        if state not in SETTLED or (state != "works" and len(reason.split()) < 3):
            open_rows.append((cells[1], state, reason))
        if state == "works" and not ours:
            open_rows.append((cells[1], state, "no option"))
    assert open_rows == []


@pytest.mark.parametrize(("section", "column"), [(4, 1), (5, 0)])
def test_no_setting_of_prompt_tuning_or_of_the_llm_trainer_is_left_open(
    section: int, column: int
) -> None:
    rows = documented()
    open_rows = []
    for cells in reference_rows(section):
        # One row of the list may name several: "lr, later learning_rate".
        for name in re.split(r", later |, ", cells[column].removesuffix(" (optional)")):
            ours, state, reason = rows[f"`{name}`"][1:4]
            is_settled = bool(ours) if state == "works" else len(reason.split()) >= 3
            if state not in SETTLED or not is_settled:
                open_rows.append((name, state, reason))
    assert open_rows == []


@pytest.mark.parametrize("system", list(System))
def test_what_the_document_says_works_reaches_its_option(system: System) -> None:
    """Not by name alone: each such setting is read, and another value of it changes ours."""
    unreached = []
    for setting in SETTINGS_OF[system]:
        if not setting.has_option or setting.name in ONE_VALUE:
            continue
        options = [other.option for other in SETTINGS_OF[system] if other.name == setting.name]
        tried = [*SPECIAL.get(setting.name, ()), *_others(setting)]
        if not any(_changes(system, setting.name, value, options) for value in tried):
            unreached.append(setting.name)
    assert unreached == []


#: Settings of which one value works, which is the default: the document says so.
ONE_VALUE = ("prediction.metric_gpt_template",)
#: Values that a general rule does not find, by setting.
SPECIAL: dict[str, tuple[Any, ...]] = {
    "architecture.pretrained_weights": ("weights.pth",),
    "training.loss_function": ("SampleAveragedCrossEntropy",),
    "environment.gpus": (["0", "1"],),
    "Quantization rank": (8, 16),
}
#: Settings beside it without which one has no effect.
BESIDE: dict[str, dict[str, Any]] = {
    "architecture.pretrained_weights": {"training.lora": False},
    "dataset.validation_dataframe": {"dataset.validation_strategy": "custom"},
    "dataset.only_last_answer": {"dataset.parent_id_column": "parent_id"},
    "training.differential_learning_rate": {
        "training.differential_learning_rate_layers": ["embed"]
    },
    "training.freeze_layers": {"training.lora": False},
    "dataset.chatbot_name": {"dataset.personalize": True},
    "dataset.chatbot_author": {"dataset.personalize": True},
}


def _others(setting: ForeignSetting) -> list[Any]:
    """Values that are not the default, of the kind that our option takes."""
    kind = option_at(setting.option)
    choices = [choice for choice in kind.setting.choices if choice]
    values: list[Any] = [True, False, 3, 0.125, "other", ["other"], "1", "W&B", "BLEU", "GPT"]
    return [*choices, *(choice.upper() for choice in choices), *values]


def _changes(system: System, name: str, value: Any, options: list[str]) -> bool:
    beside = BESIDE.get(name, {})
    try:
        plain = import_experiment(beside, system).options
        found = import_experiment({**beside, name: value}, system).options
    except (LuthierError, TypeError, ValueError, AttributeError):
        return False  # Not a value that this setting can have.
    return any(plain.value(option) != found.value(option) for option in options)


def documented() -> dict[str, list[str]]:
    """First cell of each row of the part about other systems -> the other cells."""
    text = DOCUMENT.read_text(encoding="utf-8")
    part = text.split("<!-- begin: other systems (generated) -->")[1]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return {
        html.unescape(cells[0]).strip(): [cell.strip() for cell in cells[1:]]
        for cells in rows
        if len(cells) == 5
    }
