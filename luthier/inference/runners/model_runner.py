"""One forward pass for slices of many rows: any mix of prompts, single tokens and adapters."""

from __future__ import annotations

from collections.abc import Sequence

import alog
import torch
from torch import nn

from luthier.errors import NotSupportedError
from luthier.inference.batch_rows import RowSlice, SliceLogits
from luthier.inference.deltas.delta_layers import DeltaLayers
from luthier.inference.deltas.own_tokens import look_up_tokens
from luthier.inference.linear.few_tokens import quicken_few_tokens
from luthier.inference.linear.int8_weights import use_int8_weights
from luthier.inference.memory.kv_cache import KvShape
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.rowwise.gated_mlps import quicken_gates
from luthier.inference.rowwise.rms_norms import quicken_norms
from luthier.inference.runners.alibi_attention import AlibiAttention, uses_alibi
from luthier.inference.runners.base import Runner, RunnerLimits
from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.own_attention import OwnAttention, has_own_attention
from luthier.inference.runners.packable import (
    require_packable,
    same_windows,
    window_of_all,
    windows_in,
)
from luthier.inference.runners.packed_attention import (
    PackedBatch,
    PackedRow,
    ShapeProbe,
    with_packed_attention,
)
from luthier.inference.runners.proof import refusing, require_same
from luthier.inference.runners.rotary_attention import quicken_rotary_attention
from luthier.inference.runners.told_attention import NAME, told_attention
from luthier.resources.base_model import BaseModel

log = alog.use_channel(__name__)

_PROBE_TOKENS = 6
#: Rows that are computed together, each in two slices of so many tokens.
_PROBE_SLICES = ((4, 2), (3, 1))


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
        require_packable(base_model)
        self._device, self._dtype = base_model.device, base_model.dtype
        self._model = with_packed_attention(base_model.model, name=NAME, attention=told_attention)
        self._step: CurrentStep[PackedBatch | ShapeProbe] = CurrentStep(self._model)
        quicken_few_tokens(self._model)
        quicken_norms(self._model)
        quicken_gates(self._model)
        if uses_alibi(self._model):
            AlibiAttention(self._model)
        elif has_own_attention(self._model):
            OwnAttention(self._model)
        quicken_rotary_attention(self._model)
        self._delta_layers = DeltaLayers(self._model, limits.merging)
        self._embed = self._model.get_input_embeddings()
        self._states = _HiddenStates()
        if self._model.base_model is not self._model:
            self._model.base_model.register_forward_hook(self._states)
        with torch.inference_mode(), refusing(base_model):
            self._set_up(base_model, limits)
        #: Low-rank deltas that rows may use, by the adapter's key.
        self.deltas = self._delta_layers.tables

    def _set_up(self, base_model: BaseModel, limits: RunnerLimits) -> None:
        """Make room for keys and values, and try the network."""
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
            window=window_of_all(base_model),
        )
        self._prove(base_model)
        self._states.take()

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
            positions = [i for each in slices for i in range(each.start, each.stop)]
            logits = self._forward(self._embeddings(slices), positions, batch, ends)
        measured = [each for each in slices if each.num_logits]
        parts = logits.split([each.num_logits for each in measured]) if measured else ()
        results = [SliceLogits(*pair) for pair in zip(measured, parts, strict=True)]
        return results + self._scored(slices, logits[:0])

    def _forward(
        self, embeddings: torch.Tensor, positions: list[int], batch: PackedBatch, ends: list[int]
    ) -> torch.Tensor:
        """Logits of the tokens ``ends`` of a step, [M, V]."""
        self._step.set(batch)
        output = self._model(
            inputs_embeds=embeddings,
            position_ids=torch.tensor([positions], dtype=torch.long, device=self._device),
            use_cache=False,
            return_dict=True,
            logits_to_keep=torch.tensor(ends, dtype=torch.long, device=self._device),
        )
        logits: torch.Tensor = output.logits[0]
        return logits

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
            mask = self._mask(each.start, each.count)
            rows.append(PackedRow(first, each.count, start, start + each.stop, mask))
        where = torch.tensor(slots, dtype=torch.long, device=self._device)
        return PackedBatch(self.memory.arena, where, tuple(rows)), ends

    def _mask(self, start: int, count: int) -> torch.Tensor | None:
        """What a row's tokens see, [count, start + count]; None if that is plain."""
        if count == 1 or start == 0:
            return None
        ones = torch.ones(count, start + count, dtype=torch.bool, device=self._device)
        return ones.tril(diagonal=start)

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
        expected = base_model.model(input_ids=ids, use_cache=False).logits
        self._step.set(probe)
        with self._delta_layers.watching(_PROBE_TOKENS):
            got = self._model(
                inputs_embeds=self._embed(ids),
                position_ids=torch.arange(_PROBE_TOKENS, device=self._device)[None],
                use_cache=False,
            ).logits
        require_same(base_model, got, expected)
        shapes = set(probe.by_layer.values())
        if sorted(probe.by_layer) != list(range(len(probe.by_layer))) or len(shapes) != 1:
            raise NotSupportedError(f"the layers of base model {base_model.name!r} differ")
        if not same_windows(base_model, probe.windows, windows_in(base_model)):
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

    def _prove(self, base_model: BaseModel) -> None:
        """Compare rows computed together, in two steps, with the model's own logits of each."""
        rows = []
        for index, counts in enumerate(_PROBE_SLICES):
            ids = torch.arange(sum(counts), device=self._device) * (index + 3) + index
            rows.append(ids % base_model.vocab_size)
        room = max(sum(counts) for counts in _PROBE_SLICES)
        if self.memory.allocator.num_tokens < room * len(rows):
            raise NotSupportedError(
                f"the key-value cache holds {self.memory.allocator.num_tokens} tokens of base "
                f"model {base_model.name!r}, at least {room * len(rows)} are needed"
            )
        got: list[list[torch.Tensor]] = [[] for _ in rows]
        starts = [0] * len(rows)
        for counts in zip(*_PROBE_SLICES, strict=True):
            slots: list[int] = []
            parts: list[PackedRow] = []
            for index, (start, count) in enumerate(zip(starts, counts, strict=True)):
                first, mask = index * room, self._mask(start, count)
                stop = first + start + count
                parts.append(PackedRow(len(slots), count, first, stop, mask))
                slots.extend(range(first + start, stop))
            batch = PackedBatch(
                self.memory.arena, torch.tensor(slots, device=self._device), tuple(parts)
            )
            pairs = [(row, start, n) for row, start, n in zip(rows, starts, counts, strict=True)]
            ids = torch.cat([row[start : start + n] for row, start, n in pairs])
            positions = [i for _, start, n in pairs for i in range(start, start + n)]
            ends = list(range(len(slots)))
            logits = self._forward(self._embed(ids[None]), positions, batch, ends)
            for found, part in zip(got, logits.split(counts), strict=True):
                found.append(part)
            starts = [start + n for _, start, n in pairs]
        for row, found in zip(rows, got, strict=True):
            expected = base_model.model(input_ids=row[None], use_cache=False).logits[0]
            require_same(base_model, torch.cat(found), expected)


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
