"""One forward pass for slices of many rows: any mix of prompts, single tokens and adapters."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import alog
import torch
from torch import nn
from transformers import GPTNeoConfig

from luthier.errors import NotSupportedError
from luthier.inference.batch_rows import RowSlice, SliceLogits
from luthier.inference.deltas.delta_layers import DeltaLayers
from luthier.inference.deltas.own_tokens import look_up_tokens
from luthier.inference.linear.few_tokens import quicken_few_tokens
from luthier.inference.linear.int8_weights import use_int8_weights
from luthier.inference.memory.kv_cache import KvShape
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.runners.alibi_attention import AlibiAttention, uses_alibi
from luthier.inference.runners.base import Runner, RunnerLimits
from luthier.inference.runners.own_attention import OwnAttention, has_own_attention
from luthier.inference.runners.packed_attention import (
    PackedBatch,
    PackedRow,
    ShapeProbe,
    with_packed_attention,
)
from luthier.inference.runners.row_forward import positions_change_with_length
from luthier.resources.base_model import BaseModel

log = alog.use_channel(__name__)

_PROBE_TOKENS = 6
_FULL, _SLIDING = "full_attention", "sliding_attention"


class PackedRunner(Runner):
    """Runs a causal model on rows laid end to end, with keys and values in an arena.

    Works for any model that lets its attention be replaced; whether it gives the model's own logits
    is measured when it is made.

    Args:
        base_model: A causal one. Its weights are shared, not copied.
        limits: Of the arena, among others.

    Raises:
        NotSupportedError: If the model cannot be run this way; the message says why.
    """

    def __init__(self, base_model: BaseModel, limits: RunnerLimits) -> None:
        _require_packable(base_model)
        self._device, self._dtype = base_model.device, base_model.dtype
        self._model = with_packed_attention(base_model.model)
        quicken_few_tokens(self._model)
        if uses_alibi(self._model):
            AlibiAttention(self._model)
        elif has_own_attention(self._model):
            OwnAttention(self._model)
        self._delta_layers = DeltaLayers(self._model, limits.merging)
        self._embed = self._model.get_input_embeddings()
        self._states = _HiddenStates()
        if self._model.base_model is not self._model:
            self._model.base_model.register_forward_hook(self._states)
        shape = self._probe(base_model)
        self.gives_hidden = self._states.take() is not None
        num_tokens = limits.max_kv_bytes // shape.bytes_per_token(self._dtype)
        if base_model.max_positions is not None:
            num_tokens = min(num_tokens, limits.max_rows * (base_model.max_positions + 64))
        self.memory = KvMemory(
            shape,
            num_tokens=num_tokens,
            max_prefix_bytes=limits.max_prefix_bytes,
            dtype=self._dtype,
            device=self._device,
            window=_window_of_all(base_model),
        )
        #: Low-rank deltas that rows may use, by the adapter's key.
        self.deltas = self._delta_layers.tables

    def use_int8_weights(self) -> int:
        """Multiply by int8 weights from now on; see ``Runner``."""
        return use_int8_weights(self._model)

    def run(self, slices: Sequence[RowSlice]) -> list[SliceLogits]:
        """Compute the slices and store their keys and values.

        Running the same slices again gives the same.

        Args:
            slices: One per row; each row's range holds everything before its slice and has room
                for the slice.

        Returns:
            The logits, or the hidden state, of those slices that need any.
        """
        slices, spans = self._delta_layers.arrange(slices)
        batch, ends = self._pack(slices)
        adding = self._delta_layers.adding(spans, num_tokens=len(batch.slots), kept=ends)
        with torch.inference_mode(), adding:
            output = self._model(
                inputs_embeds=self._embeddings(slices),
                position_ids=self._positions(slices),
                use_cache=False,
                return_dict=True,
                logits_to_keep=torch.tensor(ends, dtype=torch.long, device=self._device),
                packed_batch=batch,
            )
        measured = [each for each in slices if each.num_logits]
        parts = output.logits[0].split([each.num_logits for each in measured]) if measured else ()
        results = [SliceLogits(*pair) for pair in zip(measured, parts, strict=True)]
        return results + self._scored(slices, output.logits[0, :0])

    def _scored(self, slices: Sequence[RowSlice], no_logits: torch.Tensor) -> list[SliceLogits]:
        """The hidden states of the slices that want them."""
        states = self._states.take()
        results, stop = [], 0
        for each in slices:
            stop += each.count
            if each.wants_hidden:
                assert states is not None
                results.append(SliceLogits(each, no_logits, states[0, stop - 1]))
        return results

    def close(self) -> None:
        """Let a merged adapter go; see ``Runner``."""
        self._delta_layers.close()

    def _pack(self, slices: Sequence[RowSlice]) -> tuple[PackedBatch, list[int]]:
        """The attention's view of a step, and the indices of the tokens whose logits are needed."""
        slots: list[int] = []
        rows: list[PackedRow] = []
        ends: list[int] = []
        for each in slices:
            assert each.row.kv is not None
            start = each.row.kv.origin
            first = len(slots)
            slots.extend(range(start + each.start, start + each.stop))
            ends.extend(range(len(slots) - each.num_logits, len(slots)))
            mask = self._mask(each) if each.count > 1 and each.start > 0 else None
            rows.append(PackedRow(first, each.count, start, start + each.stop, mask))
        where = torch.tensor(slots, dtype=torch.long, device=self._device)
        return PackedBatch(self.memory.arena, where, tuple(rows)), ends

    def _mask(self, each: RowSlice) -> torch.Tensor:
        ones = torch.ones(each.count, each.stop, dtype=torch.bool, device=self._device)
        return ones.tril(diagonal=each.start)

    def _positions(self, slices: Sequence[RowSlice]) -> torch.Tensor:
        flat = [position for each in slices for position in range(each.start, each.stop)]
        return torch.tensor([flat], dtype=torch.long, device=self._device)

    def _embeddings(self, slices: Sequence[RowSlice]) -> torch.Tensor:
        ids = [i for each in slices for i in each.token_ids()]
        # Asked for each time: adapters may have embeddings of their own in its place.
        embed = self._model.get_input_embeddings()
        parts = [(each.row.sequence.prompt.own_tokens, each.count) for each in slices]
        rows = look_up_tokens(embed, ids, parts, device=self._device)
        first = 0
        for each in slices:
            soft_prompt = each.row.sequence.prompt.soft_prompt.decoder
            if soft_prompt is not None and each.start < each.row.num_virtual:
                virtual = soft_prompt[each.start : each.stop]
                rows[0, first : first + len(virtual)] = virtual
            first += each.count
        return rows

    def _probe(self, base_model: BaseModel) -> KvShape:
        """Learn the shapes, and compare logits with the model's own on a few tokens."""
        ids = torch.arange(_PROBE_TOKENS, device=self._device)[None] % base_model.vocab_size
        probe = ShapeProbe()
        with torch.inference_mode():
            expected = base_model.model(input_ids=ids, use_cache=False).logits
            with self._delta_layers.watching(_PROBE_TOKENS):
                got = self._model(
                    inputs_embeds=self._embed(ids),
                    position_ids=torch.arange(_PROBE_TOKENS, device=self._device)[None],
                    use_cache=False,
                    packed_batch=probe,
                ).logits
        difference = ((got - expected).abs().max() / expected.abs().max()).item()
        if not difference < max(1e-3, 16 * torch.finfo(self._dtype).eps):
            raise NotSupportedError(
                f"packed rows give base model {base_model.name!r} other logits than its own: they "
                f"differ by {difference:.2g} of their size"
            )
        shapes = set(probe.by_layer.values())
        if sorted(probe.by_layer) != list(range(len(probe.by_layer))) or len(shapes) != 1:
            raise NotSupportedError(f"the layers of base model {base_model.name!r} differ")
        if probe.windows != _windows_in(base_model):
            raise NotSupportedError(
                f"the layers of base model {base_model.name!r} do not say through which window "
                "they attend"
            )
        ((num_kv_heads, key_dim, value_dim),) = shapes
        if key_dim != value_dim:
            raise NotSupportedError(
                f"base model {base_model.name!r} has keys of {key_dim} and values of {value_dim}"
            )
        return KvShape(len(probe.by_layer), num_kv_heads, key_dim)


class _HiddenStates:
    """A hook on a network's layers below its output layer: keeps what a pass gives, [1, N, D]."""

    def __init__(self) -> None:
        self._states: torch.Tensor | None = None

    def __call__(self, body: nn.Module, inputs: object, output: object) -> None:
        self._states = getattr(output, "last_hidden_state", None)

    def take(self) -> torch.Tensor | None:
        """What the last pass gave, once; None if there was none or its layers were not called."""
        states, self._states = self._states, None
        return states


def _require_packable(base_model: BaseModel) -> None:
    model = base_model.model
    name = f"base model {base_model.name!r}"
    if base_model.kind != "causal":
        raise NotSupportedError(f"{name} is no causal model")
    is_known = uses_alibi(model) or has_own_attention(model)
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


def _windows_in(base_model: BaseModel) -> dict[int, int | None]:
    """How many tokens each layer looks back at, as the model's configuration says."""
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


def _window_of_all(base_model: BaseModel) -> int | None:
    """The widest window, if no layer sees all: keys and values of all layers lie together."""
    windows = list(_windows_in(base_model).values())
    return None if None in windows else max(window for window in windows if window is not None)
