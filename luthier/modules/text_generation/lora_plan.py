"""A LoRA tuning before it starts: the plan of any training, and of the deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.data_model.options.lora import (
    LORA_OPTION_ALIASES,
    LORA_OPTION_NAMES,
    LORA_TUNING_DEFAULTS,
    MAX_RANK,
    LoraConfig,
    LoraLimits,
)
from luthier.data_model.options.lora_starts import LOFTQ_INIT, require_loftq_base
from luthier.data_model.options.training_options import (
    TRAINING_OPTION_ALIASES,
    TRAINING_OPTION_NAMES,
)
from luthier.data_model.training_settings import SETTINGS_ARGUMENT
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean
from luthier.modules.environment import Environment
from luthier.modules.planning.hooks import HOOK_NAMES, limits_for
from luthier.modules.planning.marker_tokens import marker_tokens, require_same_markers
from luthier.modules.planning.starting_point import read_lora_start
from luthier.modules.planning.train_plan import AdapterPlan, plan_training
from luthier.resources.base_model import BaseModel

_COMMON_ARGUMENTS = ("base_model", "train_stream", "val_stream", SETTINGS_ARGUMENT, *HOOK_NAMES)


@dataclass(frozen=True)
class LoraTuningPlan(AdapterPlan):
    """A LoRA tuning that nothing known so far speaks against.

    Args:
        lora: Size, scaling, layers and start of the deltas. Whether the base model has such
            layers is known with its weights.
    """

    lora: LoraConfig

    def make_adapter(self, base_model: BaseModel) -> LoraAdapter:
        """The deltas before their first update.

        Args:
            base_model: From ``acquire``.

        Returns:
            A fresh adapter.
        """
        if self.start is not None:
            lora = read_lora_start(self.start, base_model, self.lora)
            require_same_markers(lora, base_model, self.dataset)
            return lora
        added = marker_tokens(base_model, self.dataset)
        if self.lora.initialisation == LOFTQ_INIT:
            with self.acquire(is_original=True) as original:
                return create_lora(
                    base_model.model,
                    self.lora,
                    seed=self.options.seed,
                    original=original.model,
                    added=added,
                )
        return create_lora(base_model.model, self.lora, seed=self.options.seed, added=added)


def plan_lora_tuning(
    arguments: Mapping[str, Any], *, module_id: str, environment: Environment
) -> LoraTuningPlan:
    """Plan a LoRA tuning and its deltas; takes and raises what ``plan_training`` does."""
    refuse_unknown_options(arguments, what="a LoRA tuning")
    lora = lora_config_of(arguments)
    common = {name: value for name, value in arguments.items() if not is_lora_option(name)}
    plan = plan_training(
        common, module_id=module_id, defaults=LORA_TUNING_DEFAULTS, environment=environment
    )
    max_rank = min(MAX_RANK, limits_for(plan.hooks, environment).max_lora_rank)
    lora.validate(LoraLimits(max_rank=max_rank))
    require_loftq_base(
        lora.initialisation,
        quantization=plan.options.quantization,
        serve_quantized=plan.options.serve_quantized,
    )
    return LoraTuningPlan.of(plan, lora=lora)


def lora_config_of(arguments: Mapping[str, Any]) -> LoraConfig:
    """The options of LoRA among the arguments; what equals a default counts as not given.

    Args:
        arguments: Of ``train``, by name.

    Returns:
        The options, each checked by itself.

    Raises:
        InvalidInputError: Naming the option, its value and what it must be.
    """
    given = {
        name: value
        for name, value in arguments.items()
        # On a wire, an empty list is a list that nobody sent.
        if is_lora_option(name) and value not in (None, []) and not _is_default(name, value)
    }
    for name in ("rank_pattern", "alpha_pattern"):
        if isinstance(given.get(name), list | tuple):
            given[name] = _pattern_table(name, given[name])
    config = LoraConfig.from_mapping(given)
    return config


def _pattern_table(option: str, entries: Sequence[object]) -> dict[str, float]:
    """``["q_proj=4"]`` -> ``{"q_proj": 4}``: a wire has no mapping."""
    table: dict[str, float] = {}
    for entry in entries:
        pattern, _, number = str(entry).rpartition("=")
        if not pattern or pattern in table:
            raise InvalidInputError(
                f"'{option}' must list 'name=number', each name once, got {str(entry)[:80]!r}"
            )
        try:
            table[pattern] = int(number) if option == "rank_pattern" else float(number)
        except ValueError as error:
            raise InvalidInputError(
                f"'{option}': {number[:80]!r} of {pattern[:80]!r} is not a number"
            ) from error
    return table


def is_lora_option(name: str) -> bool:
    """Whether an argument is an option of LoRA, under any of its names."""
    return LORA_OPTION_ALIASES.get(name, name) in LORA_OPTION_NAMES


def _is_default(name: str, value: object) -> bool:
    default = getattr(LoraConfig(), LORA_OPTION_ALIASES.get(name, name))
    return type(value) is type(default) and value == default


def refuse_unknown_options(
    arguments: Mapping[str, Any], *, what: str, own: Sequence[str] = ()
) -> None:
    """Refuse an argument that neither a LoRA nor the loop has.

    Args:
        arguments: Of ``train``, by name.
        what: The tuning, for the message.
        own: What the tuning has besides.

    Raises:
        UnknownKeyError: With the nearest known name.
    """
    known = (
        *own,
        *_COMMON_ARGUMENTS,
        *TRAINING_OPTION_NAMES,
        *TRAINING_OPTION_ALIASES,
        *LORA_OPTION_NAMES,
        *LORA_OPTION_ALIASES,
    )
    for name in arguments:
        if name not in known:
            hint = did_you_mean(name[:80], known)
            raise UnknownKeyError(f"unknown option of {what}: {name[:80]!r}{hint}")
