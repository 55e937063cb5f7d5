"""All options of one tuning in one object, grouped as people look for them.

``ExperimentOptions`` holds the typed options of its parts; in a file they stand in groups, which
follow H2O LLM Studio's::

    general  dataset  tokenizer  architecture  training  augmentation  prediction
    lora  tuning_config  head  environment  logging

``option_table`` lists them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.head import HeadOptions
from luthier.data_model.options.limits import UNLIMITED, TrainingLimits
from luthier.data_model.options.lora import LoraConfig, LoraLimits
from luthier.data_model.options.lora_starts import require_loftq_base
from luthier.data_model.options.option_table import (
    DEFAULTS_OF_METHOD,
    GROUPS,
    OPTIONS,
    PARTS,
    Option,
    leaves,
    option_at,
)
from luthier.data_model.options.prompt_encoder import encoder_options
from luthier.data_model.options.prompt_words import TuningType
from luthier.data_model.options.quantisation import NONE
from luthier.data_model.options.run_options import (
    FULL_FINE_TUNING,
    HEAD,
    LORA,
    METHODS,
    PROMPT_TUNING,
    PROMPT_TUNING_METHODS,
    PromptOptions,
    RunOptions,
)
from luthier.data_model.options.training_options import (
    PROMPT_TUNING_DEFAULTS,
    TrainingOptions,
)
from luthier.errors import InvalidInputError, did_you_mean
from luthier.files.names import check_name

#: Kinds that ``Setting.check`` knows; the parts check the others themselves.
_PLAIN_KINDS = ("int", "number", "bool", "text", "choice")
#: Kinds whose values are lists of texts.
_LIST_KINDS = ("names", "texts", "choices")


@dataclass(frozen=True)
class ExperimentOptions:
    """Everything that one tuning is asked for. Building one checks nothing; ``validate`` does.

    Args:
        general: Method, base model, name and place of the result.
        dataset: Files, columns, rendering, split, augmentation.
        training: The loop.
        lora: For methods lora and head alone.
        tuning_config: For prompt tuning alone.
        head: For method head alone.
    """

    general: RunOptions = field(default_factory=RunOptions)
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    training: TrainingOptions = PROMPT_TUNING_DEFAULTS
    lora: LoraConfig = field(default_factory=LoraConfig)
    tuning_config: PromptOptions = field(default_factory=PromptOptions)
    head: HeadOptions = field(default_factory=HeadOptions)

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
        default, lists become tuples, and one text is a list of one where a list is wanted. Nothing
        but the names is checked.

        Args:
            given: Group to name to value; any may be absent.

        Returns:
            The options, unchecked.

        Raises:
            UnknownKeyError: With the whole path, and the nearest known one or the group where it
                belongs.
            InvalidInputError: If a group holds no names, or an option is given twice.
        """
        values: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        spelled: dict[str, str] = {}
        for path, value in leaves(given):
            option = option_at(path)
            if value is None:
                continue
            if option.path in spelled:
                raise InvalidInputError(
                    f"'{path}' and '{spelled[option.path]}' are the same option; give one of them"
                )
            spelled[option.path] = path
            values[option.part][option.name] = _frozen(value, option)
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
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for path, value in given.items():
            option = option_at(path)
            if value is not None:
                parts[option.part][option.name] = _frozen(value, option)
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

    def require_named(self, *, has_result: bool = True) -> None:
        """Refuse a tuning of which it is not said what is tuned, on what, and under which name.

        Args:
            has_result: Whether a model is made, which wants a name.

        Raises:
            InvalidInputError: Naming the option by its path.
        """
        name = ("general.model_name",) if has_result else ()
        for path in (*name, "general.base_model", "dataset.train_dataframe"):
            if not self.value(path):
                raise InvalidInputError(f"'{path}' is missing")
        if has_result:
            check_name(self.general.model_name, what="general.model_name")

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
        if method != FULL_FINE_TUNING and self.training.pretrained_weights is not None:
            raise InvalidInputError(
                f"'architecture.pretrained_weights' has no use with method {method}, whose result "
                "belongs to the base model as its name finds it; go on from an adapter with "
                "'general.start_from', or name a folder with those weights as 'general.base_model'"
            )
        if method == FULL_FINE_TUNING and self.training.quantization != NONE:
            raise InvalidInputError(
                "'architecture.quantization' has no use with method full_fine_tuning: what is "
                "quantised cannot be learned"
            )
        if method in (LORA, HEAD):
            self.lora.validate(LoraLimits())
        if method == HEAD:
            self.head.validate(limits)
            if not self.head.use_lora and self.lora != LoraConfig():
                raise InvalidInputError(
                    "'head.use_lora' is false and there are options of a LoRA; leave out the one "
                    "or the others"
                )
        if method == LORA:
            require_loftq_base(
                self.lora.initialisation,
                quantization=self.training.quantization,
                serve_quantized=self.training.serve_quantized,
            )
        if method in PROMPT_TUNING_METHODS:
            if self.dataset.add_prompt_answer_tokens:
                raise InvalidInputError(
                    f"'tokenizer.add_prompt_answer_tokens' has no use with method {method}: PEFT's "
                    "folder of a prompt has no place for embeddings of tokens, and its virtual "
                    "tokens mark the prompt already"
                )
            self.tuning_config.validate(limits)
            encoder_options(self.tuning_config, TuningType(method.upper()))


def _has_use(part: str, method: str) -> bool:
    if part == "lora":
        return method in (LORA, HEAD)
    if part == "head":
        return method == HEAD
    if part == "tuning_config":
        return method in PROMPT_TUNING_METHODS
    return True


def _frozen(value: Any, option: Option) -> Any:
    if isinstance(value, list):
        return tuple(value)
    # LoraConfig knows which single words stand for more than themselves.
    is_one = isinstance(value, str) and option.setting.kind in _LIST_KINDS
    return (value,) if is_one and option.part != "lora" else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return value
