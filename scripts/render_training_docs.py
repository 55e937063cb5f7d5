"""The tables of docs/settings.md about one tuning: our options, and other systems' settings."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from luthier.data_model.options.option_table import GROUPS, OPTIONS, Option
from luthier.data_model.options.run_options import FULL_FINE_TUNING, HEAD, LORA, PROMPT_TUNING
from luthier.data_model.other_systems.foreign_setting import ABSENT, ForeignSetting
from luthier.data_model.other_systems.importing import IMPLIED, SETTINGS_OF
from luthier.data_model.other_systems.llm_trainer_settings import PRESETS
from luthier.data_model.other_systems.studio_items import CREATION_ITEMS, USER_SETTINGS

_MEANINGS: Mapping[str, str] = {
    "general": "What is tuned, how, and where the result goes.",
    "dataset": "Files, columns, and how rows become text.",
    "tokenizer": "How much of a row is kept.",
    "architecture": "How the base model computes.",
    "training": "The loop.",
    "augmentation": "What is drawn anew in each epoch.",
    "prediction": "What is measured on held-out rows.",
    "lora": "For methods lora and head alone.",
    "tuning_config": "For prompt_tuning and its kin alone.",
    "head": "For method head alone.",
    "environment": "Where and how repeatably.",
    "logging": "What is shown, and where it is sent.",
}


def training_options() -> Iterator[str]:
    """One table per group of options."""
    names = _names_in_other_systems()
    for group in GROUPS:
        yield from ("", f"### `{group}`", "", _MEANINGS[group], "")
        yield from _table_head("Option", "Default", "Allowed", "Meaning", "In other systems")
        for option in OPTIONS:
            if option.group == group:
                yield _row(
                    f"`{option.name}`",
                    _default(option),
                    _allowed(option),
                    option.setting.meaning,
                    _other_names(option, names[option.path]),
                )
    yield ""


def other_systems() -> Iterator[str]:
    """One table per system, and the presets."""
    for system, table in SETTINGS_OF.items():
        yield from ("", f"### {system}", "")
        implied = ", ".join(f"`{path}: {_shown(value)}`" for path, value in IMPLIED[system].items())
        yield from (f"What it does without being told: {implied}.", "")
        yield from _table_head("Setting", "Default there", "Here", "State", "To know")
        for setting in table:
            yield _row(
                f"`{setting.name}`",
                "" if setting.default is ABSENT else f"`{_shown(setting.default)}`",
                f"`{setting.option}`" if setting.has_option else "",
                str(setting.state),
                setting.reason,
            )
    yield from ("", "Presets of the LLM Trainer (`luthier train --preset NAME`):", "")
    fields = list(next(iter(PRESETS.values())))
    yield from _table_head("Preset", *fields)
    for name, values in PRESETS.items():
        yield _row(f"`{name}`", *(str(values[field]) for field in fields))
    yield from ("", "### What H2O LLM Studio's screens have besides", "")
    yield from _table_head("Item", "Here")
    for item, answer in (*CREATION_ITEMS.items(), *USER_SETTINGS.items()):
        yield _row(item, answer)
    yield ""


def _names_in_other_systems() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for system, table in SETTINGS_OF.items():
        for setting in table:
            if setting.has_option and _counts_as_name(setting):
                found[setting.option].append(f"{system}: `{setting.name}`")
    return found


def _counts_as_name(setting: ForeignSetting) -> bool:
    """Settings that only feed into the conversion of another one are no names."""
    return setting.name != "environment.gpus"


def _other_names(option: Option, names: Iterable[str]) -> str:
    aliases = ", ".join(f"`{alias}`" for alias in option.setting.aliases)
    return "; ".join(filter(None, [*names, f"accepted too: {aliases}" if aliases else ""]))


def _default(option: Option) -> str:
    usual = option.default(PROMPT_TUNING)
    others = [
        f"{method} `{_shown(option.default(method))}`"
        for method in (LORA, FULL_FINE_TUNING, HEAD)
        if option.default(method) != usual and option.path != "general.method"
    ]
    return "; ".join([f"`{_shown(usual)}`", *others])


def _allowed(option: Option) -> str:
    setting = option.setting
    limits = [
        f">= {setting.minimum:g}" if setting.minimum is not None else "",
        f"> {setting.above:g}" if setting.above is not None else "",
        f"<= {setting.maximum:.15g}" if setting.maximum is not None else "",
        f"<= `training.limits.{setting.limit}`" if setting.limit else "",
        ", ".join(setting.choices),
        "or none" if setting.is_optional else "",
    ]
    return "; ".join([setting.kind, *filter(None, limits)])


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    return json.dumps(value, ensure_ascii=False)


def _table_head(*names: str) -> Iterable[str]:
    return (_row(*names), _row(*("---" for _ in names)))


def _row(*cells: str) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(cell: str) -> str:
    """A cell whose bars and angle brackets are text."""
    return cell.replace("|", "\\|").replace("<", "&lt;")
