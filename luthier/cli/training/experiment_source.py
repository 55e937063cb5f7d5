"""From a file, a preset and options of the command line to one experiment in our words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.data_model.experiment_file import read_yaml_mapping
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.data_model.options.option_table import GROUPS, is_option, path_of
from luthier.data_model.other_systems.importing import (
    SETTINGS_OF,
    ImportedExperiment,
    System,
    import_experiment,
    preset,
    system_of,
)
from luthier.errors import InvalidInputError

#: Paths of files that a file names relative to itself.
_FILES = ("dataset.train_dataframe", "dataset.validation_dataframe")
#: Keys of a flat run -> our paths; the other keys are names of options.
_FLAT_KEYS = {
    "train_data": "dataset.train_dataframe",
    "validation_data": "dataset.validation_dataframe",
}


@dataclasses.dataclass(frozen=True)
class ExperimentSource:
    """What was asked for.

    Args:
        options: In our words.
        imported: How it came about, if a file or preset is in another system's.
    """

    options: ExperimentOptions
    imported: ImportedExperiment | None = None


def is_experiment(content: Mapping[str, Any]) -> bool:
    """Whether a file is in groups, or in another system's words; a flat run is neither."""
    is_grouped = any(
        key in GROUPS and isinstance(value, Mapping) and key != "tuning_config"
        for key, value in content.items()
    )
    return is_grouped or system_of(content) is not None


def read_experiment(
    file: Path | None, preset_name: str | None, given: Mapping[str, Any]
) -> ExperimentSource:
    """Read a file or preset and lay options over it.

    Args:
        file: YAML in our groups, flat, or of another system; None for none.
        preset_name: Of the LLM Trainer; its fields are laid under the file's.
        given: From the command line: names or paths of our options, or of the other system's.

    Returns:
        The experiment, unchecked.

    Raises:
        UnknownKeyError: For a name that nothing has.
        InvalidInputError: For a file that cannot be read, or values in a wrong place.
        NotSupportedError: If the other system's experiment asks for what is not here.
    """
    content = {} if file is None else read_yaml_mapping(file)
    system = System.LLM_TRAINER if preset_name else system_of(content)
    if preset_name:
        content = {**preset(preset_name), **content}
    foreign = {} if system is None else _foreign_names(given, system)
    ours = {_path(name): value for name, value in given.items() if name not in foreign}
    imported = None
    if system is not None:
        imported = import_experiment(_laid_over(content, foreign), system)
        options = imported.options
    elif is_experiment(content):
        options = ExperimentOptions.from_dict(content)
    else:
        options = ExperimentOptions.from_dict(_grouped(content, ours))
    if file is not None:
        options = _beside(options, file.parent)
    options = _with(options, ours)
    if imported is not None:
        imported.require_complete(answered=set(ours))
        imported = dataclasses.replace(imported, options=options)
    return ExperimentSource(options, imported)


def _with(options: ExperimentOptions, ours: Mapping[str, Any]) -> ExperimentOptions:
    method = ours.get("general.method")
    if method is not None and method != options.general.method:
        # Another method has other defaults; what was said before stays said.
        content = options.to_dict(is_complete=False)
        content["general"]["method"] = method
        options = ExperimentOptions.from_dict(content)
    if ours.get("dataset.validation_dataframe"):
        ours = {**ours, "dataset.validation_strategy": "custom"}
    return options.laid_over(ours)


def _grouped(content: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A flat run as groups. It holds out rows only if it names some."""
    groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    groups["dataset"]["validation_size"] = 0.0
    for key, value in content.items():
        if key == "tuning_config":
            if not isinstance(value, Mapping):
                raise InvalidInputError(f"'{key}' must hold keys and values, got {value!r:.80}")
            groups[key] = dict(value)
            continue
        group, _, name = _path(key).partition(".")
        groups[group][name] = value
    if groups["dataset"].get("validation_dataframe"):
        groups["dataset"]["validation_strategy"] = "custom"
    if ours.get("general.method"):
        groups["general"]["method"] = ours["general.method"]
    return groups


def _path(name: str) -> str:
    if name in _FLAT_KEYS:
        return _FLAT_KEYS[name]
    return name if is_option(name) and "." in name else path_of(name)


def _foreign_names(given: Mapping[str, Any], system: System) -> dict[str, Any]:
    names = {setting.name for setting in SETTINGS_OF[system]}
    return {name: value for name, value in given.items() if name in names}


def _laid_over(content: Mapping[str, Any], foreign: Mapping[str, Any]) -> dict[str, Any]:
    merged = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()
    }
    for name, value in foreign.items():
        group, dot, key = name.partition(".")
        if dot and isinstance(merged.setdefault(group, {}), dict):
            merged[group][key] = value
        else:
            merged[name] = value
    return merged


def _beside(options: ExperimentOptions, folder: Path) -> ExperimentOptions:
    """Files that are not found from here are looked for beside the file that names them."""
    found = {
        path: str(folder / name)
        for path in _FILES
        if (name := options.value(path)) and not Path(name).exists() and (folder / name).exists()
    }
    return options.laid_over(found)
