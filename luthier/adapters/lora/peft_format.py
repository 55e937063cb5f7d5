"""LoRA in PEFT's words: ``adapter_config.json`` and the names in ``adapter_model.safetensors``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from luthier.data_model.options.lora import LoraConfig, LoraLimits
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError

PEFT_TYPE = "LORA"
TENSOR_PREFIX = "base_model.model."
#: Starts that PEFT takes out of the base weight when it loads an adapter, and how well it can.
_REPEATABLE_STARTS = frozenset({"pissa", "olora"})
_LOST_STARTS = ("pissa_niter_", "corda", "loftq", "lora_ga")

# Keys of PEFT's LoraConfig with a meaning that this file understands.
_OPTION_OF_KEY = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "target_modules": "target_modules",
    "exclude_modules": "exclude_modules",
    "layers_to_transform": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable_token_indices",
}
#: Keys that change nothing in what the adapter computes, whatever they hold.
_HARMLESS_KEYS = frozenset(
    {
        "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "fan_in_fan_out", "bias", "init_lora_weights",
        "megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "eva_config",
        "corda_config", "lora_ga_config", "velora_config", "ensure_weight_tying",
    }
)  # fmt: skip
#: PEFT's own defaults, where a folder of an old version says nothing.
_PEFT_DEFAULTS = {"r": 8, "lora_alpha": 8}


def write_config(
    config: LoraConfig,
    *,
    task_type: str,
    target_modules: list[str] | str,
    modules_to_save: Iterable[str],
    is_transposed: bool,
    is_stacked: bool,
    added_indices: Mapping[str, list[int]] | list[int] | None = None,
) -> dict[str, Any]:
    """``adapter_config.json``.

    How the factors started is not told: the file holds finished ones for the untouched base model,
    and with some words PEFT would change the base's weights while it loads.

    Args:
        config: What was asked for.
        task_type: ``CAUSAL_LM`` or ``SEQ_2_SEQ_LM``.
        target_modules: As PEFT shall read it.
        modules_to_save: Paths or names of modules that are saved whole.
        is_transposed: Whether the weights are [in, out], as GPT-2's.
        is_stacked: Whether each delta is written with its start taken away, at twice the rank.
        added_indices: Ids of tokens that the adapter adds to the vocabulary, perhaps by the path of
            the embeddings that have them.

    Returns:
        JSON values; what is not there has PEFT's default.
    """
    rank_factor = 2 if is_stacked else 1
    # Scaling is alpha / rank or alpha / sqrt(rank); it must survive the doubled rank.
    alpha_factor = math.sqrt(2) if is_stacked and config.use_rslora else float(rank_factor)
    return {
        "alpha_pattern": {
            name: _tidy(alpha * alpha_factor) for name, alpha in config.alpha_pattern.items()
        },
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "exclude_modules": _listed(config.exclude_modules),
        "fan_in_fan_out": is_transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": list(config.layers_pattern) or None,
        "layers_to_transform": _listed(config.layers_to_transform),
        "lora_alpha": _tidy(config.alpha * alpha_factor),
        "lora_bias": False,
        "lora_dropout": config.dropout,
        "modules_to_save": list(modules_to_save) or None,
        "peft_type": PEFT_TYPE,
        "r": config.rank * rank_factor,
        "rank_pattern": {name: rank * rank_factor for name, rank in config.rank_pattern.items()},
        "revision": None,
        "target_modules": target_modules,
        "task_type": task_type,
        "trainable_token_indices": added_indices or list(config.trainable_token_indices) or None,
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }


def read_config(
    content: Mapping[str, Any], *, task_type: str, limits: LoraLimits | None = None
) -> LoraConfig:
    """A config from ``adapter_config.json``, refusing what would be computed differently here.

    Args:
        content: The parsed file.
        task_type: Of the base model; the file's must be this or none.
        limits: Caps on rank and counts; the class's defaults if None.

    Returns:
        A validated config.

    Raises:
        ArtifactError: If a key holds what no LoRA can have; names key, value and limit.
        NotSupportedError: If the adapter uses a part of PEFT's that is not offered here.
    """
    if content.get("peft_type") != PEFT_TYPE:
        raise ArtifactError(f"peft_type is {str(content.get('peft_type'))[:80]!r}, not 'LORA'")
    if content.get("task_type") not in (None, task_type):
        raise ArtifactError(
            f"the adapter is for task_type {str(content['task_type'])[:80]!r}, the base model "
            f"does {task_type!r}"
        )
    _refuse_other_parts(content)
    if content.get("target_modules") is None:
        raise ArtifactError("'target_modules' is missing: nothing says which layers are meant")
    given = _PEFT_DEFAULTS | {key: content[key] for key in _OPTION_OF_KEY if key in content}
    options = {_OPTION_OF_KEY[key]: value for key, value in given.items()}
    try:
        config = LoraConfig.from_mapping(
            {**options, "initialisation": _read_start(content.get("init_lora_weights", True))}
        )
        config.validate(limits or LoraLimits())
    except NotSupportedError:
        raise
    except InvalidInputError as error:
        raise ArtifactError(f"adapter_config.json: {error}") from error
    return config


def without_added(content: Mapping[str, Any], added_ids: Mapping[str, int]) -> dict[str, Any]:
    """A config without the ids of tokens that its adapter adds to the vocabulary.

    Args:
        content: The parsed file.
        added_ids: Text and id of each.

    Returns:
        What ``read_config`` takes.

    Raises:
        ArtifactError: If the config does not have exactly those ids.
    """
    found = content.get("trainable_token_indices")
    if isinstance(found, Mapping) and len(found) == 1:
        found = next(iter(found.values()))
    if not isinstance(found, list) or found != list(added_ids.values()):
        raise ArtifactError(
            f"the adapter adds tokens {list(added_ids.values())}, 'trainable_token_indices' of its "
            f"config is {found!r:.80}"
        )
    return {**content, "trainable_token_indices": None}


def check_state(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Tensors without PEFT's prefix, if they are exactly the expected ones.

    Args:
        state: Names as in the file.
        expected: Name without the prefix to shape.

    Returns:
        Name without the prefix to tensor.

    Raises:
        ArtifactError: If a name is missing or too many, a shape differs, or a tensor holds NaN,
            infinities or no floats; names the tensor.
    """
    found = {name.removeprefix(TENSOR_PREFIX): tensor for name, tensor in state.items()}
    if len(found) != len(state):
        raise ArtifactError("a tensor is there twice, with and without the prefix of PEFT")
    if not found.keys() & expected.keys():
        raise ArtifactError(
            f"none of the adapter's {len(found)} tensors{_such_as(found)} belongs to the base "
            f"model, which expects {len(expected)}{_such_as(expected)}"
        )
    unknown, missing = found.keys() - expected.keys(), expected.keys() - found.keys()
    if unknown:
        raise ArtifactError(
            f"{len(unknown)} of the adapter's tensors fit no layer{_such_as(unknown)}"
        )
    if missing:
        raise ArtifactError(
            f"the adapter lacks {len(missing)} of {len(expected)} tensors{_such_as(missing)}"
        )
    for name, tensor in found.items():
        if tuple(tensor.shape) != expected[name]:
            raise ArtifactError(
                f"{name} has shape {list(tensor.shape)}, the base model and the config ask for "
                f"{list(expected[name])}"
            )
        if not tensor.is_floating_point():
            raise ArtifactError(f"{name} holds {tensor.dtype}, must be floating point numbers")
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{name} holds NaN or infinite numbers")
    return found


def _refuse_other_parts(content: Mapping[str, Any]) -> None:
    if content.get("bias", "none") != "none":
        raise NotSupportedError(
            f"the adapter trains biases (bias={str(content['bias'])[:20]!r}), which is not offered"
        )
    for key, value in content.items():
        # Falsy is "not used" for every switch and sub-config of PEFT's.
        if key not in _OPTION_OF_KEY and key not in _HARMLESS_KEYS and value:
            raise NotSupportedError(
                f"the adapter uses {str(key)[:80]!r} of PEFT's LoRA, which is not offered here"
            )


def _read_start(value: object) -> str:
    """The start that must be taken away again, or ``default`` if the factors say all."""
    if value in _REPEATABLE_STARTS:
        return str(value)
    if isinstance(value, str) and value.startswith(_LOST_STARTS):
        raise NotSupportedError(
            f"init_lora_weights {value[:40]!r} changed the base model in a way that the adapter "
            "does not hold; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    return "default"


def _tidy(number: float) -> int | float:
    """Alpha as PEFT writes it: an int where it is one."""
    return int(number) if float(number).is_integer() else float(number)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _such_as(names: Iterable[str]) -> str:
    shown = ", ".join(name[:120] for name in sorted(names)[:3])
    return f" (such as {shown})" if shown else ""
