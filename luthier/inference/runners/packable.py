"""What causal models say themselves: whether packed rows may suit them, how far they look back.

What they do not say is measured (``model_runner``).
"""

from __future__ import annotations

import inspect

from transformers import GPTNeoConfig

from luthier.errors import NotSupportedError
from luthier.inference.runners.alibi_attention import uses_alibi
from luthier.inference.runners.own_attention import has_own_attention
from luthier.inference.runners.row_forward import positions_change_with_length
from luthier.resources.base_model import BaseModel

_FULL, _SLIDING = "full_attention", "sliding_attention"
#: They take their attention from outside without saying so.
_REPLACEABLE = frozenset({"biogpt", "stablelm"})


def require_packable(base_model: BaseModel) -> None:
    """Refuse a model that is known not to run on packed rows.

    Args:
        base_model: Any.

    Raises:
        NotSupportedError: The message says why.
    """
    model = base_model.model
    name = f"base model {base_model.name!r}"
    if base_model.kind != "causal":
        raise NotSupportedError(f"{name} is no causal model")
    is_known = (
        uses_alibi(model) or has_own_attention(model) or model.config.model_type in _REPLACEABLE
    )
    if not (is_known or getattr(model, "_supports_attention_backend", False)):
        raise NotSupportedError(f"{name} does not let its attention be replaced")
    if positions_change_with_length(model):
        raise NotSupportedError(f"{name} encodes positions by the longest row")
    accepted = inspect.signature(model.forward).parameters
    for argument in ("position_ids", "inputs_embeds", "logits_to_keep"):
        if argument not in accepted and not (argument == "position_ids" and uses_alibi(model)):
            raise NotSupportedError(f"{name} takes no {argument!r}")
    config = model.config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or []) - {_FULL, _SLIDING}
    if unknown:
        raise NotSupportedError(f"{name} has layers of sorts {sorted(unknown)}")
    if getattr(config, "use_bidirectional_attention", None):
        raise NotSupportedError(f"{name} attends in both directions")
    if getattr(config, "attn_temperature_tuning", None):
        raise NotSupportedError(f"{name} scales scores by positions that it counts itself")


def windows_in(base_model: BaseModel) -> dict[int, int | None]:
    """How many tokens each layer looks back at, as the model's configuration says.

    Args:
        base_model: A causal one.

    Returns:
        By index; None where a layer sees all.
    """
    config = base_model.model.config.get_text_config()
    if isinstance(config, GPTNeoConfig):
        return {
            index: config.window_size if kind == "local" else None
            for index, kind in enumerate(config.attention_layers)
        }
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    default = [_FULL if window is None else _SLIDING] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or default
    return {index: window if kind == _SLIDING else None for index, kind in enumerate(kinds)}


def window_of_all(base_model: BaseModel) -> int | None:
    """The widest window, if no layer sees all: keys and values of all layers lie together."""
    windows = list(windows_in(base_model).values())
    return None if None in windows else max(window for window in windows if window is not None)


def same_windows(
    base_model: BaseModel, some: dict[int, int | None], others: dict[int, int | None]
) -> bool:
    """Whether layers look back equally far, given how long a text may be at all.

    Args:
        base_model: Whose layers they are.
        some: By index.
        others: Likewise.
    """
    longest = base_model.max_positions

    def cut(windows: dict[int, int | None]) -> dict[int, int | None]:
        return {
            index: None if window and longest and window >= longest else window
            for index, window in windows.items()
        }

    return cut(some) == cut(others)
