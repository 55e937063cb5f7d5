"""Soft prompts out of what a PEFT folder holds: its config and its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from luthier.adapters.prompts.multitask_soft_prompt import MultitaskSoftPrompt
from luthier.adapters.prompts.p_tuning import P_TUNING_TYPE, PTuning
from luthier.adapters.prompts.prefix_tuning import PrefixShape, PrefixTuning
from luthier.adapters.prompts.soft_prompt import (
    DECODER_ONLY_TYPE,
    MAX_VIRTUAL_TOKENS,
    MULTITASK_TYPE,
    PROMPT_TUNING_TYPE,
    BaseModelKind,
    PromptPlace,
    SoftPrompt,
)
from luthier.data_model.options.prompt_encoder import DEFAULT_NUM_LAYERS, MLP, PromptEncoderOptions
from luthier.errors import InvalidInputError

PROMPT_TYPES = (PROMPT_TUNING_TYPE, MULTITASK_TYPE, DECODER_ONLY_TYPE, P_TUNING_TYPE)
_PROMPT = "prompt_embeddings"
_FACTORS = ("prefix_task_cols", "prefix_task_rows")


def read_prompt(
    config: Mapping[str, object],
    state: Mapping[str, torch.Tensor],
    *,
    kind: BaseModelKind,
    hidden_size: int,
    method: object = None,
    task_id: object = 0,
) -> SoftPrompt | MultitaskSoftPrompt | PTuning:
    """Build the adapter that a PEFT config of ``PROMPT_TYPES`` and its tensors describe.

    Args:
        config: ``adapter_config.json``.
        state: Float tensors by PEFT's names.
        kind: Of the base model.
        hidden_size: Of the base model, D.
        method: What our manifest says it is; None for a folder of PEFT's own.
        task_id: Which task of multitask prompt tuning to use.

    Returns:
        The adapter, on the device of its tensors.

    Raises:
        InvalidInputError: If config, tensors and base model do not fit each other.
    """
    if _PROMPT not in state or not state.keys() <= {_PROMPT, *_FACTORS}:
        raise InvalidInputError(
            f"its weights must be {_PROMPT!r} (and those of multitask prompt tuning), "
            f"got {sorted(state)[:5]}"
        )
    prompt = state[_PROMPT]
    num_virtual_tokens = _positive_int(config, "num_virtual_tokens", MAX_VIRTUAL_TOKENS)
    # PEFT's default: a seq2seq model has two stacks, whether or not both get virtual tokens.
    max_places = 2 if kind == "seq2seq" else 1
    num_places = _positive_int(config, "num_transformer_submodules", max_places, default=max_places)
    if list(prompt.shape) != [num_virtual_tokens * num_places, hidden_size]:
        raise InvalidInputError(
            f"its prompt is {list(prompt.shape)}, must be "
            f"{[num_virtual_tokens * num_places, hidden_size]}: {num_virtual_tokens} virtual "
            f"tokens in {num_places} place(s), hidden size of the base model"
        )
    places: tuple[PromptPlace, ...] = ("encoder", "decoder")
    if kind == "causal" or config["peft_type"] == DECODER_ONLY_TYPE:
        places = ("decoder",)
    if config["peft_type"] == P_TUNING_TYPE:
        return PTuning(prompt[:num_virtual_tokens], kind=kind, options=_encoder_options(config))
    if config["peft_type"] == PROMPT_TUNING_TYPE:
        # PEFT puts the first rows before the encoder and the rest nowhere.
        return SoftPrompt(prompt[:num_virtual_tokens], kind=kind, places=places[:1])
    places = places[:num_places]
    if method == SoftPrompt.method and _factors_do_nothing(state):
        return SoftPrompt(prompt, kind=kind, places=places)
    missing = [name for name in _FACTORS if name not in state]
    if missing:
        raise InvalidInputError(f"its weights lack {missing}")
    if isinstance(task_id, bool) or not isinstance(task_id, int):
        raise InvalidInputError(f"'task_id' must be a number, got {str(task_id)[:80]!r}")
    columns, rows = (state[name] for name in _FACTORS)
    return MultitaskSoftPrompt(prompt, columns, rows, kind=kind, places=places, task_id=task_id)


def read_prefix(
    config: Mapping[str, object],
    state: Mapping[str, torch.Tensor],
    *,
    kind: BaseModelKind,
    shape: PrefixShape,
) -> PrefixTuning:
    """Build the adapter that a PEFT config of type ``PREFIX_TUNING`` and its tensor describe.

    Args:
        config: ``adapter_config.json``.
        state: Float tensors by PEFT's names.
        kind: Of the base model.
        shape: Of the base model's keys and values.

    Returns:
        The adapter, on the device of its tensors.

    Raises:
        InvalidInputError: If config, tensors and base model do not fit each other.
    """
    if set(state) != {_PROMPT}:
        raise InvalidInputError(f"its weights must be {_PROMPT!r} alone, got {sorted(state)[:5]}")
    num_virtual_tokens = _positive_int(config, "num_virtual_tokens", MAX_VIRTUAL_TOKENS)
    num_stacks = 1 if kind == "causal" else 2
    expected = {
        "num_transformer_submodules": num_stacks,
        "num_layers": shape.num_layers,
        "num_attention_heads": shape.num_kv_heads,
        "token_dim": shape.layer_width,
    }
    for key, value in expected.items():
        if config.get(key) not in (None, value):
            raise InvalidInputError(
                f"{key!r} is {str(config[key])[:80]!r}, this base model takes {value}"
            )
    if len(state[_PROMPT]) != num_virtual_tokens:
        raise InvalidInputError(
            f"'num_virtual_tokens' is {num_virtual_tokens}, its weights have {len(state[_PROMPT])}"
        )
    options = _encoder_options(config)
    return PrefixTuning(state[_PROMPT], kind=kind, shape=shape, options=options)


def _encoder_options(config: Mapping[str, object]) -> PromptEncoderOptions:
    """What a prompt was learned through: known, never used again."""
    given = {
        "reparameterization_type": config.get("encoder_reparameterization_type", MLP),
        "hidden_size": config.get("encoder_hidden_size"),
        "num_layers": config.get("encoder_num_layers", DEFAULT_NUM_LAYERS),
        "dropout": config.get("encoder_dropout", 0.0),
        "prefix_projection": config.get("prefix_projection", False),
    }
    options = PromptEncoderOptions(**given)  # type: ignore[arg-type]  # ``validate`` sees to types
    options.validate()
    return options


def _factors_do_nothing(state: Mapping[str, torch.Tensor]) -> bool:
    """True if the task matrices are absent or ones, as ``SoftPrompt.peft_state`` writes them."""
    return all(bool((state[name] == 1).all()) for name in _FACTORS if name in state)


def _positive_int(
    config: Mapping[str, object], key: str, maximum: int, *, default: int | None = None
) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise InvalidInputError(f"{key!r} must be from 1 to {maximum}, got {str(value)[:80]!r}")
    return value
