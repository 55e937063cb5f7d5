"""The list of all options of an experiment, by the groups in which people look for them.

A group is a way to find an option, not a type: ``tokenizer.max_length`` and ``dataset.data_sample``
are both fields of ``DatasetOptions``. Reading, writing, checking and documentation are made from
``OPTIONS``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.head import HeadOptions
from luthier.data_model.options.lora import (
    LORA_TUNING_DEFAULTS,
    LoraConfig,
)
from luthier.data_model.options.run_options import (
    FULL_FINE_TUNING,
    HEAD,
    LORA,
    MULTITASK_PROMPT_TUNING,
    P_TUNING,
    PREFIX_TUNING,
    PROMPT_TUNING,
    PromptOptions,
    RunOptions,
)
from luthier.data_model.options.setting import Setting
from luthier.data_model.options.training_options import (
    FULL_FINE_TUNING_DEFAULTS,
    HEAD_TUNING_DEFAULTS,
    NETWORK_PROMPT_DEFAULTS,
    PROMPT_TUNING_DEFAULTS,
    TrainingOptions,
)
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean

#: Part of ``ExperimentOptions`` -> its class.
PARTS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "general": RunOptions,
        "dataset": DatasetOptions,
        "training": TrainingOptions,
        "lora": LoraConfig,
        "tuning_config": PromptOptions,
        "head": HeadOptions,
    }
)
#: Fields whose group is not called like the part that holds them.
_GROUP_OF: Mapping[str, str] = MappingProxyType(
    {
        "verbalizer": "dataset",
        "train_validation_data": "training",
        "max_length": "tokenizer",
        "max_length_prompt": "tokenizer",
        "max_length_answer": "tokenizer",
        "max_source_length": "tokenizer",
        "max_target_length": "tokenizer",
        "padding_quantile": "tokenizer",
        "add_prompt_answer_tokens": "tokenizer",
        "max_tokens_in_memory": "tokenizer",
        "tokenization_cache": "tokenizer",
        "max_tokenization_cache_bytes": "tokenizer",
        "pretrained_weights": "architecture",
        "torch_dtype": "architecture",
        "start_from": "general",
        "quantization": "architecture",
        "serve_quantized": "architecture",
        "gradient_checkpointing": "architecture",
        "base_dropout": "architecture",
        "intermediate_dropout": "architecture",
        "token_mask_probability": "augmentation",
        "skip_parent_probability": "augmentation",
        "random_parent_probability": "augmentation",
        "neftune_noise_alpha": "augmentation",
        "device": "environment",
        "num_processes": "environment",
        "use_fsdp": "environment",
        "compile_model": "environment",
        "mixed_precision": "environment",
        "number_of_workers": "environment",
        "seed": "environment",
        "metrics": "prediction",
        "judge_model": "prediction",
        "judge_template": "prediction",
        "max_generated_tokens": "prediction",
        "silence_progress_bars": "logging",
        "trackers": "logging",
        "tracker_project": "logging",
    }
)
GROUPS = (
    "general",
    "dataset",
    "tokenizer",
    "architecture",
    "training",
    "augmentation",
    "prediction",
    "lora",
    "tuning_config",
    "head",
    "environment",
    "logging",
)
#: Hyperparameters where a file says nothing.
DEFAULTS_OF_METHOD: Mapping[str, TrainingOptions] = MappingProxyType(
    {
        PROMPT_TUNING: PROMPT_TUNING_DEFAULTS,
        MULTITASK_PROMPT_TUNING: PROMPT_TUNING_DEFAULTS,
        P_TUNING: NETWORK_PROMPT_DEFAULTS,
        PREFIX_TUNING: NETWORK_PROMPT_DEFAULTS,
        LORA: LORA_TUNING_DEFAULTS,
        FULL_FINE_TUNING: FULL_FINE_TUNING_DEFAULTS,
        HEAD: HEAD_TUNING_DEFAULTS,
    }
)


@dataclass(frozen=True)
class Option:
    """One option of an experiment.

    Args:
        group: Where a file has it.
        name: In its group.
        part: Field of ``ExperimentOptions`` that holds it.
        setting: Meaning and range.
    """

    group: str
    name: str
    part: str
    setting: Setting

    @property
    def path(self) -> str:
        """Group and name."""
        return f"{self.group}.{self.name}"

    def default(self, method: str) -> Any:
        """The value where a file says nothing.

        Args:
            method: One of ``METHODS``.

        Returns:
            The default.
        """
        if self.path == "general.method":
            return method
        if self.part == "training":
            return getattr(DEFAULTS_OF_METHOD[method], self.name)
        return getattr(PARTS[self.part](), self.name)


def _options() -> Iterator[Option]:
    found = [
        Option(_GROUP_OF.get(each.name, part), each.name, part, each.metadata["setting"])
        for part, kind in PARTS.items()
        for each in dataclasses.fields(kind)
    ]
    yield from sorted(found, key=lambda option: GROUPS.index(option.group))


#: Every option, group by group.
OPTIONS: tuple[Option, ...] = tuple(_options())
_BY_PATH: Mapping[str, Option] = MappingProxyType(
    {
        f"{option.group}.{name}": option
        for option in OPTIONS
        for name in (option.name, *option.setting.aliases)
    }
)
_BY_NAME: Mapping[str, Option] = MappingProxyType(
    {path.partition(".")[2]: option for path, option in _BY_PATH.items()}
)


def option_at(path: str) -> Option:
    """The option of a path.

    Args:
        path: Group and name; another name of the option does as well.

    Returns:
        The option.

    Raises:
        UnknownKeyError: With the nearest known path, or the group where the name belongs.
    """
    if path in _BY_PATH:
        return _BY_PATH[path]
    group, _, name = path.partition(".")
    if name in _BY_NAME:
        raise UnknownKeyError(f"unknown key {path[:160]!r}, did you mean {_BY_NAME[name].path!r}?")
    if not name and path in _BY_NAME:
        raise UnknownKeyError(f"unknown key {path[:160]!r}, did you mean {_BY_NAME[path].path!r}?")
    if name and group not in GROUPS:
        raise UnknownKeyError(f"unknown group {group[:80]!r}{did_you_mean(group[:80], GROUPS)}")
    raise UnknownKeyError(f"unknown key {path[:160]!r}{did_you_mean(path[:160], _BY_PATH)}")


def path_of(name: str) -> str:
    """The path of an option that is named without its group.

    Args:
        name: Of an option, or another name of one; a whole path does as well.

    Returns:
        Group and name.

    Raises:
        UnknownKeyError: With the nearest known path or name.
    """
    if name in _BY_NAME:
        return _BY_NAME[name].path
    if "." in name:
        return option_at(name).path
    raise UnknownKeyError(f"unknown option {name[:80]!r}{did_you_mean(name[:80], _BY_NAME)}")


def is_option(path: str) -> bool:
    """Whether there is an option of this path."""
    return path in _BY_PATH


def leaves(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Path and value of each option of a file.

    Args:
        given: Group to name to value.

    Yields:
        Path and value, unchecked but for the group.

    Raises:
        UnknownKeyError: For an unknown group.
        InvalidInputError: If a group holds no names.
    """
    for group, names in given.items():
        if group not in GROUPS:
            where = f", did you mean {_BY_NAME[group].path!r}?" if group in _BY_NAME else ""
            raise UnknownKeyError(
                f"unknown group {str(group)[:80]!r}"
                + (where or did_you_mean(str(group)[:80], GROUPS))
            )
        if names is None:
            continue
        if not isinstance(names, Mapping):
            raise InvalidInputError(f"'{group}' must hold names and values, got {names!r:.80}")
        for name, value in names.items():
            yield f"{group}.{name}", value
