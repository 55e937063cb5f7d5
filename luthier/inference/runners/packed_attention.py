"""Attention for rows of any length laid end to end in one forward pass.

transformers lets a model take its attention from outside (``AttentionInterface``). Ours stores the
new keys and values in the arena and attends row by row to the row's own range, so no row ever
sees, waits for or is padded to another. On a CPU one kernel does so for all rows
(``row_attention``); elsewhere PyTorch's attention is called for each.

```
    tokens of a step, [1, N]:  | A: one new token | B: one | C: 40 tokens of its prompt | D: one |
    linear layers, norms:        all N at once, whatever the rows are
    attention:                   A -> A's range   B -> ...   C -> causal within its range
```
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from luthier.errors import NotSupportedError
from luthier.inference.memory.kv_cache import KvArena
from luthier.inference.runners.row_attention import attend_rows, has_row_attention
from luthier.inference.runners.score_attention import ScoreOptions, score_attention

NAME = "luthier_packed"
#: What models pass that changes nothing here, or is None for models without the feature.
_HARMLESS = frozenset(
    {
        "dropout",
        "is_causal",
        "position_ids",
        "cache_position",
        "use_cache",
        "output_router_logits",
    }
)


@dataclass(frozen=True)
class PackedRow:
    """One row's tokens in a step.

    Args:
        first: Index of its first token among the step's.
        count: How many.
        kv_start: Where its range in the arena starts.
        kv_end: End of what it attends to: its range up to its last token of this step.
        mask: [count, kv_end - kv_start], True where attention is allowed; None if it is plainly
            causal or there is one token.
    """

    first: int
    count: int
    kv_start: int
    kv_end: int
    mask: torch.Tensor | None

    @property
    def start(self) -> int:
        """Positions before its first token of this step."""
        return self.kv_end - self.kv_start - self.count


@dataclass(frozen=True)
class PackedBatch:
    """Everything attention must know about a step.

    Args:
        arena: Keys and values.
        slots: Where the step's tokens go in it, [N].
        rows: In the order of their tokens.
    """

    arena: KvArena
    slots: torch.Tensor
    rows: tuple[PackedRow, ...]
    _windowed: dict[tuple[int, int], PackedRow] = field(default_factory=dict)

    @functools.cached_property
    def table(self) -> torch.Tensor:
        """The rows as ``row_table`` gives them."""
        return row_table(self.rows)

    def rows_within(self, window: int | None) -> tuple[PackedRow, ...]:
        """The rows as a layer sees them whose tokens look back at ``window`` tokens at most.

        Args:
            window: Tokens, the looking one included; None if there is no limit.

        Returns:
            Rows with what no token sees cut off, the same for every layer with that window.
        """
        if window is None:
            return self.rows
        for row in self.rows:
            if (row.first, window) not in self._windowed:
                self._windowed[row.first, window] = _cut(row, window, self.slots.device)
        return tuple(self._windowed[row.first, window] for row in self.rows)


def row_table(rows: Sequence[PackedRow]) -> torch.Tensor:
    """Rows as ``attend_rows`` takes them: first, count, kv_start, kv_end of each, [R, 4]."""
    numbers = [(row.first, row.count, row.kv_start, row.kv_end) for row in rows]
    return torch.tensor(numbers, dtype=torch.long)


def _cut(row: PackedRow, window: int, device: torch.device) -> PackedRow:
    if row.start + row.count <= window:
        return row
    first_seen = max(0, row.start - window + 1)
    kv_start = row.kv_start + first_seen
    if row.count == 1:
        return PackedRow(row.first, 1, kv_start, row.kv_end, None)
    offset = row.start - first_seen  # of the first token among what is left
    ones = torch.ones(row.count, row.kv_end - kv_start, dtype=torch.bool, device=device)
    mask = ones.tril(diagonal=offset).triu(diagonal=offset - window + 1)
    return PackedRow(row.first, row.count, kv_start, row.kv_end, mask)


@dataclass
class ShapeProbe:
    """Passed instead of a ``PackedBatch`` to learn what each layer is like.

    Args:
        by_layer: (K, keys' Dh, values' Dh).
        windows: Tokens that the layer looks back at, or None.
    """

    by_layer: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_batch: PackedBatch | ShapeProbe,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    Args:
        module: The attention layer; its ``layer_idx`` says which.
        query: [1, H, N, Dh].
        key: [1, K, N, Dh], positions applied.
        value: [1, K, N, Dh].
        attention_mask: Not used: the batch says who sees what.
        packed_batch: The step.
        scaling: Of the scores.
        sliding_window: Tokens that a token sees, itself included; None if it sees all before it.
        softcap: Bound of the scores.
        s_aux: A sink per head that takes part in the softmax, [H].
        **others: Further features of the model; refused if they would matter.

    Returns:
        [1, N, H, Dh] and no weights.

    Raises:
        NotSupportedError: If the model asks for what this attention does not do.
    """
    refuse_unknown(module, others)
    options = None
    if softcap is not None or s_aux is not None:
        options = ScoreOptions(scaling=scaling, softcap=softcap, sinks=s_aux)
    if isinstance(packed_batch, ShapeProbe):
        packed_batch.by_layer[module.layer_idx] = (key.shape[1], key.shape[3], value.shape[3])
        packed_batch.windows[module.layer_idx] = sliding_window
        out = _several(query, key, value, None, scaling=scaling, options=options)
        return out.transpose(1, 2), None
    if has_row_attention(query, key, value):
        mixed = attend_rows(
            query[0],
            (key[0], value[0]),
            packed_batch.arena.read(module.layer_idx),
            packed_batch.table,
            options=options or ScoreOptions(scaling=scaling),
            window=sliding_window,
        )
        return mixed[None], None
    keys, values = packed_batch.arena.write(module.layer_idx, packed_batch.slots, key[0], value[0])
    _, num_heads, num_tokens, head_dim = query.shape
    num_kv_heads = key.shape[1]
    # The query heads of a group share keys: seen as positions of one head they need no copies.
    grouped = query[0].transpose(0, 1).reshape(num_tokens, 1, num_kv_heads, -1, head_dim)
    singles = grouped.unbind(0)
    outputs: list[torch.Tensor] = []
    for row in packed_batch.rows_within(sliding_window):
        row_keys = keys[None, :, row.kv_start : row.kv_end]
        row_values = values[None, :, row.kv_start : row.kv_end]
        if row.count == 1 and options is None:
            one = scaled_dot_product_attention(
                singles[row.first], row_keys, row_values, scale=scaling
            )
            outputs.append(one.view(1, num_heads, head_dim))
            continue
        part = query[:, :, row.first : row.first + row.count]
        several = _several(part, row_keys, row_values, row.mask, scaling=scaling, options=options)
        outputs.append(several[0].transpose(0, 1))
    return torch.cat(outputs)[None], None


def _several(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None,
    options: ScoreOptions | None,
) -> torch.Tensor:
    """One row's tokens, causal if there is no mask, [1, H, n, Dh]."""
    if options is not None:
        return score_attention(query, keys, values, mask, options)
    return scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )


def refuse_unknown(module: Any, others: dict[str, Any]) -> None:
    """Refuse what a model asks of its attention beyond what is known.

    Args:
        module: The attention layer.
        others: What it passed, by name.

    Raises:
        NotSupportedError: If any of it would matter.
    """
    for name, value in others.items():
        is_declined = name == "output_attentions" and value is False
        if value is not None and name not in _HARMLESS and not is_declined:
            raise NotSupportedError(
                f"{type(module).__name__} asks its attention for {name!r}, which packed rows lack"
            )


def with_packed_attention(
    model: PreTrainedModel,
    *,
    name: str = NAME,
    attention: Callable[..., tuple[torch.Tensor, None]] = packed_attention,
) -> PreTrainedModel:
    """A second network on the same weights with another attention, ``packed_attention`` or alike.

    Costs a few objects and no tensor; the given model is not changed.

    Args:
        model: Any network.
        name: What transformers shall know the attention by.
        attention: The function that takes its place in every layer.

    Returns:
        The second network.
    """
    AttentionInterface.register(name, attention)
    tensors = itertools.chain(model.parameters(), model.buffers())
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for module in twin.modules():  # an encoder and a decoder have configurations of their own
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            config._attn_implementation = name
    return twin
