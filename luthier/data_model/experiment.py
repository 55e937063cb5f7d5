"""All options of one tuning in one object, grouped as people look for them.

``ExperimentOptions`` holds the typed options of its parts; in a file they stand in groups, which
follow H2O LLM Studio's::

    general  dataset  tokenizer  architecture  training  augmentation  prediction
    lora  tuning_config  environment  logging

A group is a way to find an option, not a type: ``tokenizer.max_length`` and ``dataset.data_sample``
are both fields of ``DatasetOptions``. ``OPTIONS`` is the list of all of them; reading, writing,
checking and documentation are made from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from luthier.data_model.dataset_options import DatasetOptions
from luthier.data_model.lora import LORA_TUNING_DEFAULTS, LoraConfig, LoraLimits, require_loftq_base
from luthier.data_model.quantisation import NONE
from luthier.data_model.run_options import (
    FULL_FINE_TUNING,
    LORA,
    METHODS,
    MULTITASK_PROMPT_TUNING,
    P_TUNING,
    PREFIX_TUNING,
    PROMPT_TUNING,
    PROMPT_TUNING_METHODS,
    PromptOptions,
    RunOptions,
)
from luthier.data_model.training_options import (
    FULL_FINE_TUNING_DEFAULTS,
    PROMPT_TUNING_DEFAULTS,
    UNLIMITED,
    Setting,
    TrainingLimits,
    TrainingOptions,
)
from luthier.data_model.tuning import NETWORK_PROMPT_DEFAULTS, TuningType, encoder_options
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean

#: Part of ``ExperimentOptions`` -> its class.
_PARTS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "general": RunOptions,
        "dataset": DatasetOptions,
        "training": TrainingOptions,
        "lora": LoraConfig,
        "tuning_config": PromptOptions,
    }
)
#: Fields whose group is not called like the part that holds them.
_GROUP_OF: Mapping[str, str] = MappingProxyType(
    {
        "verbalizer": "dataset",
        "train_validation_data": "training",
        "max_length": "tokenizer",
        "max_source_length": "tokenizer",
        "max_target_length": "tokenizer",
        "padding_quantile": "tokenizer",
        "tokenization_cache": "tokenizer",
        "max_tokenization_cache_bytes": "tokenizer",
        "torch_dtype": "architecture",
        "start_from": "general",
        "quantization": "architecture",
        "serve_quantized": "architecture",
        "gradient_checkpointing": "architecture",
        "base_dropout": "architecture",
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
    }
)
#: Kinds that ``Setting.check`` knows; the parts check the others themselves.
_PLAIN_KINDS = ("int", "number", "bool", "text", "choice")


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
        return getattr(getattr(ExperimentOptions.defaults(method), self.part), self.name)


@dataclass(frozen=True)
class ExperimentOptions:
    """Everything that one tuning is asked for. Building one checks nothing; ``validate`` does.

    Args:
        general: Method, base model, name and place of the result.
        dataset: Files, columns, rendering, split, augmentation.
        training: The loop.
        lora: For method lora alone.
        tuning_config: For prompt tuning alone.
    """

    general: RunOptions = field(default_factory=RunOptions)
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    training: TrainingOptions = PROMPT_TUNING_DEFAULTS
    lora: LoraConfig = field(default_factory=LoraConfig)
    tuning_config: PromptOptions = field(default_factory=PromptOptions)

    @classmethod
    def defaults(cls, method: str) -> ExperimentOptions:
        """What holds where nothing is said.

        Args:
            method: One of ``METHODS``; they differ in epochs, learning rate and accumulation.

        Returns:
            The options, with ``general.method`` set.

        Raises:
            InvalidInputError: For another method.
        """
        if method not in METHODS:
            raise InvalidInputError(
                f"'general.method' must be one of {', '.join(METHODS)}, "
                f"got {str(method)[:80]!r}{did_you_mean(str(method)[:80], METHODS)}"
            )
        return cls(general=RunOptions(method=method), training=DEFAULTS_OF_METHOD[method])

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ExperimentOptions:
        """Options from groups of names and values, as a YAML file holds them.

        Other names of an option are accepted in its group (``training.lr``). None takes the
        default, lists become tuples. Nothing but the names is checked.

        Args:
            given: Group to name to value; any may be absent.

        Returns:
            The options, unchecked.

        Raises:
            UnknownKeyError: With the whole path, and the nearest known one or the group where it
                belongs.
            InvalidInputError: If a group holds no names, or an option is given twice.
        """
        values: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
        spelled: dict[str, str] = {}
        for path, value in _leaves(given):
            option = option_at(path)
            if value is None:
                continue
            if option.path in spelled:
                raise InvalidInputError(
                    f"'{path}' and '{spelled[option.path]}' are the same option; give one of them"
                )
            spelled[option.path] = path
            values[option.part][option.name] = _frozen(value)
        method = values["general"].get("method", PROMPT_TUNING)
        return cls.defaults(method)._replaced(values)

    def laid_over(self, given: Mapping[str, Any]) -> ExperimentOptions:
        """These options with some replaced; a value None is left as it is.

        Args:
            given: Path (``training.learning_rate``) to value.

        Returns:
            The new options, unchecked.

        Raises:
            UnknownKeyError: For a path that no option has.
        """
        parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
        for path, value in given.items():
            option = option_at(path)
            if value is not None:
                parts[option.part][option.name] = _frozen(value)
        return self._replaced(parts)

    def value(self, path: str) -> Any:
        """The value of one option.

        Args:
            path: As in ``OPTIONS``, or with another name of the option.

        Returns:
            Its value.

        Raises:
            UnknownKeyError: If there is no such option.
        """
        option = option_at(path)
        return getattr(getattr(self, option.part), option.name)

    def to_dict(self, *, is_complete: bool = True) -> dict[str, dict[str, Any]]:
        """Groups of plain values; ``from_dict`` reads them back as the same options.

        Args:
            is_complete: False leaves out what is as the method's defaults have it.

        Returns:
            Group to name to value: numbers, texts, lists, mappings, None.
        """
        content: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        for option in OPTIONS:
            value = self.value(option.path)
            is_method = option.path == "general.method"
            if is_complete or is_method or value != option.default(self.general.method):
                content[option.group][option.name] = _plain(value)
        return {group: names for group, names in content.items() if names}

    def _replaced(self, parts: Mapping[str, Mapping[str, Any]]) -> ExperimentOptions:
        changed = {
            part: dataclasses.replace(getattr(self, part), **values)
            for part, values in parts.items()
            if part != "lora"
        }
        # It understands PEFT's words for values, too.
        lora = LoraConfig.from_mapping(parts["lora"], defaults=self.lora)
        return dataclasses.replace(self, **changed, lora=lora)

    def validate(self, limits: TrainingLimits = UNLIMITED) -> None:
        """Refuse options that cannot be meant; changes nothing.

        Args:
            limits: The server's caps.

        Raises:
            InvalidInputError: For a value of the wrong type or out of range, and for options of
                another method or that contradict each other; names the option by its path.
        """
        method = self.general.method
        for option in OPTIONS:
            value = self.value(option.path)
            if option.setting.kind in _PLAIN_KINDS:
                option.setting.check(option.path, value, limits)
            if not _has_use(option.part, method) and value != option.default(method):
                raise InvalidInputError(
                    f"'{option.path}' has no use with method {method}; leave it out"
                )
        self.dataset.validate()
        if self.dataset.train_validation_data and self.training.save_checkpoint == "best":
            raise InvalidInputError(
                "'training.train_validation_data' has no use with 'training.save_checkpoint' best: "
                "the rows that say what is best would be learned"
            )
        self.training.validate(limits)
        if method == FULL_FINE_TUNING and self.training.start_from is not None:
            raise InvalidInputError(
                "'general.start_from' is for adapters; method full_fine_tuning goes on from a "
                "whole model that is named as 'general.base_model'"
            )
        if method == FULL_FINE_TUNING and self.training.quantization != NONE:
            raise InvalidInputError(
                "'architecture.quantization' has no use with method full_fine_tuning: what is "
                "quantised cannot be learned"
            )
        if method == LORA:
            self.lora.validate(LoraLimits())
            require_loftq_base(
                self.lora,
                quantization=self.training.quantization,
                serve_quantized=self.training.serve_quantized,
            )
        if method in PROMPT_TUNING_METHODS:
            self.tuning_config.validate(limits)
            encoder_options(self.tuning_config, TuningType(method.upper()))


def _options() -> Iterator[Option]:
    found = [
        Option(_GROUP_OF.get(each.name, part), each.name, part, each.metadata["setting"])
        for part, kind in _PARTS.items()
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


def _leaves(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
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


def _has_use(part: str, method: str) -> bool:
    if part == "lora":
        return method == LORA
    if part == "tuning_config":
        return method in PROMPT_TUNING_METHODS
    return True


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return value
