"""Which options of a training a server takes, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data_model.options.lora import LORA_OPTION_ALIASES, LORA_OPTION_NAMES
from luthier.data_model.options.run_options import (
    FULL_FINE_TUNING,
    HEAD,
    LORA,
    PROMPT_TUNING_METHODS,
)
from luthier.data_model.options.training_options import (
    TRAINING_OPTION_ALIASES,
    TRAINING_OPTION_NAMES,
)
from luthier.data_model.training_settings import (
    NOT_ON_THE_WIRE,
    SETTINGS_ARGUMENT,
    TrainingSettings,
)
from luthier.errors import InvalidInputError, NotSupportedError

#: Options that every training has on its wire, by the same name.
_LOOP_OPTIONS = (
    "num_epochs",
    "batch_size",
    "max_source_length",
    "accumulate_steps",
    "torch_dtype",
    "verbalizer",
)
#: Options that those of an adapter have beside them.
_ADAPTER_OPTIONS = (*_LOOP_OPTIONS, "learning_rate", "device", "silence_progress_bars", "seed")
_TARGET = "max_target_length"
#: Options of a head, and of a LoRA that are none of one below a head.
_HEAD_OPTIONS = ("labels", "use_lora")
_NOT_BELOW_A_HEAD = ("start_batches", "eva_", "corda_", "lora_ga_")
#: Per method: our name of an option -> its own name on the wire.
WIRE_NAMES: Mapping[str, Mapping[str, str]] = {
    **{
        method: {name: name for name in (*_ADAPTER_OPTIONS, _TARGET)}
        for method in PROMPT_TUNING_METHODS
    },
    LORA: {name: name for name in (*_ADAPTER_OPTIONS, _TARGET, *LORA_OPTION_NAMES)},
    FULL_FINE_TUNING: {
        **{name: name for name in (*_LOOP_OPTIONS, _TARGET)},
        "learning_rate": "lr",
        "seed": "random_seed",
    },
    HEAD: {
        name: name
        for name in (*_ADAPTER_OPTIONS, *_HEAD_OPTIONS, *LORA_OPTION_NAMES)
        if not name.startswith(_NOT_BELOW_A_HEAD)
    },
}
METHODS = tuple(WIRE_NAMES)
_ALIASES = {**LORA_OPTION_ALIASES, **TRAINING_OPTION_ALIASES}
#: Every name of an option that some training has.
OPTION_NAMES = (
    *TRAINING_OPTION_NAMES,
    *LORA_OPTION_NAMES,
    *_ALIASES,
    *TrainingSettings.fields,
    *_HEAD_OPTIONS,
)
#: Tables, which the wire has as lists of ``name=number``.
_TABLES = ("rank_pattern", "alpha_pattern")


def wire_parameters(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a train request of a method has them.

    Args:
        method: One of ``METHODS``.
        options: Under any of their names.

    Returns:
        Those with fields of their own by the wire's names, all others in ``training_options``.

    Raises:
        InvalidInputError: If an option is given twice.
        NotSupportedError: If requests of the method do not have it.
    """
    own = WIRE_NAMES[method]
    parameters: dict[str, Any] = {}
    others: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for key, value in options.items():
        option = _ALIASES.get(key, key)
        if option in spelled:
            raise InvalidInputError(f"'{key}' and '{spelled[option]}' are the same; give one")
        spelled[option] = key
        if option in own:
            parameters[own[option]] = _wire_value(option, value)
        elif option in TrainingSettings.fields:
            others[option] = value
        else:
            raise NotSupportedError(
                f"'{key}' cannot be sent with method {method}: "
                + NOT_ON_THE_WIRE.get(option, f"it takes {', '.join(own)}")
            )
    return parameters | ({SETTINGS_ARGUMENT: others} if others else {})


def _wire_value(option: str, value: Any) -> Any:
    if option in _TABLES and isinstance(value, Mapping):
        return [f"{name}={number}" for name, number in value.items()]
    return value
