"""What the arguments of ``train`` say, under our names, with what a server names for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.training_options import (
    TRAINING_OPTION_ALIASES,
    TRAINING_OPTION_NAMES,
    TrainingOptions,
)
from luthier.data_model.training_settings import (
    DEFAULTS_OF_REQUESTS,
    SETTINGS_ARGUMENT,
    is_dataset_option,
)
from luthier.errors import InvalidInputError, VerbalizerError, did_you_mean
from luthier.modules.environment import Environment
from luthier.modules.planning.hooks import HOOK_NAMES, TrainingHooks
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER, Verbalizer


def given_training_options(
    arguments: Mapping[str, Any], settings: Mapping[str, Any], defaults: TrainingOptions
) -> TrainingOptions:
    """The hyperparameters of a training.

    Args:
        arguments: Of ``train``, by name. One that has its default counts as not given, so that a
            signature's default does not fight with an alias.
        settings: Of ``training_options``, by our names.
        defaults: Of the module.

    Returns:
        The options, unchecked; no device where it is to be chosen.

    Raises:
        InvalidInputError: If an option is given twice.
        UnknownKeyError: For a name that no option has.
    """
    others = {"base_model", "train_stream", "val_stream", SETTINGS_ARGUMENT, *HOOK_NAMES}
    given = {
        name: _plain(value)
        for name, value in arguments.items()
        if name not in others and not _is_default(name, value, defaults)
    }
    spelled = {TRAINING_OPTION_ALIASES.get(name, name): name for name in given}
    for name, value in settings.items():
        if is_dataset_option(name):
            continue
        if name in spelled:
            raise InvalidInputError(
                f"'{spelled[name]}' is given twice: by itself and in '{SETTINGS_ARGUMENT}'"
            )
        given[name] = value
    options = TrainingOptions.from_mapping(given, defaults=defaults)
    return options if options.is_device_given else replace(options, device=None)


def _plain(value: object) -> object:
    """A value in the words of a wire: Python callers have dtypes and paths for them."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def given_dataset_options(
    settings: Mapping[str, Any], environment: Environment, hooks: TrainingHooks
) -> DatasetOptions:
    """How a training's records become text, and which are held out.

    Args:
        settings: Of ``training_options``, by our names.
        environment: Says whether a request may bring a chat template.
        hooks: Say whose training it is.

    Returns:
        The options, checked.

    Raises:
        InvalidInputError: Naming the option, the value and the limit.
    """
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if is_dataset_option(name)
    }
    may_bring = environment.allow_request_chat_templates or not hooks.from_request
    if given.get("chat_template") and not may_bring:
        raise InvalidInputError(
            "'chat_template' may not come with a request here; the server setting "
            "allow_request_chat_templates says so"
        )
    dataset = DatasetOptions(**{**DEFAULTS_OF_REQUESTS, **given})
    dataset.validate()
    return dataset


def _is_default(name: str, value: object, defaults: TrainingOptions) -> bool:
    option = TRAINING_OPTION_ALIASES.get(name, name)
    if option not in TRAINING_OPTION_NAMES:
        return False
    default = getattr(defaults, option)
    return type(value) is type(default) and value == default


def resolve_verbalizer(given: object, environment: Environment, hooks: TrainingHooks) -> str:
    """The template that is named, or brought along where that is allowed.

    Args:
        given: A name of the server's, or a template.
        environment: Has the names.
        hooks: Say whose training it is.

    Returns:
        The template.

    Raises:
        VerbalizerError: If it is neither, or shows nothing of a record.
    """
    if isinstance(given, str) and given in environment.verbalizers:
        return environment.verbalizers[given]
    may_bring = environment.allow_request_verbalizers or not hooks.from_request
    if not may_bring and given != DEFAULT_VERBALIZER:
        known = sorted(environment.verbalizers)
        raise VerbalizerError(
            f"verbalizer {str(given)[:80]!r} is not one of those that the server names: "
            f"{', '.join(known) or 'none'}{did_you_mean(str(given)[:80], known)}"
        )
    verbalizer = Verbalizer(given)  # type: ignore[arg-type]  # it refuses what is no string
    verbalizer.require_trainable()
    return verbalizer.template
