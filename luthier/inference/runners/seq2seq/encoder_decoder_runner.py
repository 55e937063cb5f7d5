"""Encoder-decoder models in the batched engine: read once, then decode with everybody else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import alog
import torch
from transformers.modeling_outputs import MoEModelOutput

from luthier.errors import NotSupportedError
from luthier.inference.batch_rows import RowInput, RowSlice, SliceLogits
from luthier.inference.deltas.delta_layers import DeltaLayers
from luthier.inference.deltas.delta_steps import AdapterSpan
from luthier.inference.deltas.own_tokens import look_up_tokens
from luthier.inference.linear.few_tokens import max_exact_tokens, quicken_few_tokens
from luthier.inference.memory.kv_cache import KvShape
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.rowwise.gated_mlps import quicken_gates
from luthier.inference.rowwise.rms_norms import quicken_norms
from luthier.inference.runners.base import Runner, RunnerLimits
from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import PackedRow, with_packed_attention
from luthier.inference.runners.proof import refusing, require_same
from luthier.inference.runners.row_forward import (
    decoder_start_token_id,
    positions_change_with_length,
)
from luthier.inference.runners.seq2seq.cross_attention import (
    NAME,
    AttentionStep,
    DecoderStep,
    ReadingStep,
    encoder_decoder_attention,
    reading_cache,
    stand_in_cache,
)
from luthier.inference.runners.seq2seq.encoders import (
    Encoder,
    EncoderInput,
    LoneEncoder,
    OwnAttentionType,
    PackedEncoder,
    give_own_attention,
)
from luthier.inference.runners.seq2seq.expert_capacity import drops_tokens, let_experts_take_all
from luthier.inference.runners.seq2seq.own_cross_attention import replace_own_attention
from luthier.inference.runners.seq2seq.packed_positions import PackedPositions
from luthier.inference.runners.seq2seq.reference import logits_of, shape_of
from luthier.inference.runners.seq2seq.relative_positions import RelativePositions
from luthier.resources.base_model import BaseModel

log = alog.use_channel(__name__)

_PROBE_INPUTS = (5, 3)
_PROBE_OUTPUTS = (4, 2)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Decoder input of one row in a step.

    Args:
        embeddings: [n, D].
        start: Position of the first.
        kv_start: Where the row's range starts.
        encoder_span: Where its encoder range starts and ends.
    """

    embeddings: torch.Tensor
    start: int
    kv_start: int
    encoder_span: tuple[int, int]


def _passes(rows: Sequence[RowInput], max_tokens: int | None) -> Iterator[list[RowInput]]:
    """Rows that are read in one pass each: of at most so many tokens, or a single one."""
    together: list[RowInput] = []
    num_tokens = 0
    for each in rows:
        if together and max_tokens is not None and num_tokens + each.count > max_tokens:
            yield together
            together, num_tokens = [], 0
        together.append(each)
        num_tokens += each.count
    if together:
        yield together


class EncoderDecoderRunner(Runner):
    """Runs a seq2seq model on rows laid end to end: encoders of new rows, decoders of all.

    Works for any model whose decoder takes its attention from outside and keeps what the encoder
    said in an ``EncoderDecoderCache``; whether it gives the model's own logits is measured when it
    is made. If those of its encoder on packed rows are others, rows are encoded one by one.

    Args:
        base_model: A seq2seq one. Its weights are shared, not copied.
        limits: Of the arena, among others; no prefixes are kept, because what a decoder makes of
            tokens depends on what was read.

    Raises:
        NotSupportedError: If the model cannot be run this way; the message says why.
    """

    def __init__(self, base_model: BaseModel, limits: RunnerLimits) -> None:
        decoder_start_token_id(base_model)
        if positions_change_with_length(base_model.model):
            raise NotSupportedError(
                f"base model {base_model.name!r} encodes positions by the longest row"
            )
        self._device, self._dtype = base_model.device, base_model.dtype
        try:
            self._set_up(base_model, limits, is_lone=drops_tokens(base_model.model))
        except NotSupportedError as reason:
            try:
                self._set_up(base_model, limits, is_lone=True)
            except NotSupportedError:
                raise reason from None
            log.info("Encoders of base model %s read row by row: %s", base_model.name, reason)
        #: Low-rank deltas that rows may use, by the adapter's key.
        self.deltas = self._delta_layers.tables

    def _set_up(self, base_model: BaseModel, limits: RunnerLimits, *, is_lone: bool) -> None:
        """Make the network and try it."""
        self._model = with_packed_attention(
            base_model.model, name=NAME, attention=encoder_decoder_attention
        )
        encoder, self._decoder = self._model.get_encoder(), self._model.get_decoder()
        if is_lone:
            give_own_attention(encoder, base_model.model.get_encoder())
        packed = self._decoder if is_lone else self._model
        replace_own_attention(packed)
        let_experts_take_all(packed)
        quicken_few_tokens(self._model)
        quicken_norms(self._model)
        quicken_gates(self._model)
        self._delta_layers = DeltaLayers(self._model, limits.merging)
        self._reading_layers: set[str] = set()
        self._embed = self._model.get_input_embeddings()
        self._step: CurrentStep[AttentionStep] = CurrentStep(packed)
        self._positions = PackedPositions(packed)
        self._encoder: Encoder = (
            LoneEncoder(encoder, self._delta_layers)
            if is_lone
            else PackedEncoder(encoder, self._delta_layers, self._step, self._positions)
        )
        self._biases = RelativePositions(self._decoder)
        kept = OwnAttentionType(base_model.model.get_encoder()).kept(max(_PROBE_INPUTS))
        with torch.inference_mode(), kept, refusing(base_model):
            shape = shape_of(base_model)
            self._make_room(base_model, shape, limits)
            self._probe(base_model)
            self._learn_layers()

    def begin(self, slices: Sequence[RowSlice]) -> None:
        """Run the encoder for rows that are new; see ``Runner``.

        As many share a pass as do not change each other's numbers by rounding.
        """
        unread = [RowInput(each.row) for each in slices if not each.row.encoded.is_read]
        for rows in _passes(unread, max_exact_tokens(self._device, self._dtype)):
            self._read_rows(rows)

    def _read_rows(self, rows: Sequence[RowInput]) -> None:
        arranged, spans = self._delta_layers.arrange(rows)
        new = [each.row for each in arranged]
        with torch.inference_mode():
            ids = [i for row in new for i in row.sequence.prompt.token_ids]
            counts = [len(row.sequence.prompt.token_ids) for row in new]
            owners = [row.sequence.prompt.own_tokens for row in new]
            parts = zip(owners, counts, strict=True)
            tokens = look_up_tokens(self._embed, ids, parts, device=self._device)[0]
            inputs = []
            for row, embeddings in zip(new, tokens.split(counts), strict=True):
                assert row.encoded.kv is not None
                virtual = row.sequence.prompt.soft_prompt.encoder
                if virtual is not None:
                    embeddings = torch.cat([virtual, embeddings])
                start = row.encoded.kv.start
                inputs.append(EncoderInput(embeddings, start, row.adapter_key))
            self._read(inputs, spans)
        for row in new:
            row.encoded.is_read = True

    def run(self, slices: Sequence[RowSlice]) -> list[SliceLogits]:
        """Compute slices of the decoder; see ``Runner``."""
        slices, spans = self._delta_layers.arrange(slices)
        num_tokens = sum(each.count for each in slices)
        with torch.inference_mode(), self._delta_layers.adding(spans, num_tokens=num_tokens):
            ids = [i for each in slices for i in each.row.token_ids(each.start, each.stop)]
            tokens = self._embed(torch.tensor(ids, dtype=torch.long, device=self._device))
            embeddings = tokens.split([each.count for each in slices])
            parts = [self._part(*pair) for pair in zip(slices, embeddings, strict=True)]
            logits = self._decode(parts).split([each.count for each in slices])
        return [
            SliceLogits(each, part[len(part) - each.num_logits :])
            for each, part in zip(slices, logits, strict=True)
            if each.num_logits
        ]

    def close(self) -> None:
        """Let a merged adapter go; see ``Runner``."""
        self._delta_layers.close()

    def _make_room(self, base_model: BaseModel, shape: KvShape, limits: RunnerLimits) -> None:
        num_tokens = limits.max_kv_bytes // shape.bytes_per_token(self._dtype)
        if base_model.max_positions is not None:
            num_tokens = min(num_tokens, 2 * limits.max_rows * (base_model.max_positions + 64))
        self.memory = KvMemory(
            shape,
            num_tokens=num_tokens,
            max_prefix_bytes=0,
            dtype=self._dtype,
            device=self._device,
        )
        empty = torch.zeros(1, shape.num_kv_heads, 1, shape.head_dim)
        self._stand_in = empty.to(device=self._device, dtype=self._dtype)
        self._cache = stand_in_cache(self._stand_in, shape.num_layers)
        nothing = torch.zeros(1, 1, base_model.hidden_size)
        self._nothing = nothing.to(device=self._device, dtype=self._dtype)

    def _part(self, each: RowSlice, embeddings: torch.Tensor) -> _Part:
        row = each.row
        assert row.kv is not None
        assert row.encoded.kv is not None
        virtual = row.sequence.prompt.soft_prompt.decoder
        if virtual is not None and each.start < row.num_virtual:
            virtual = virtual[each.start : each.stop]
            embeddings = torch.cat([virtual, embeddings[len(virtual) :]])
        first = row.encoded.kv.start
        return _Part(embeddings, each.start, row.kv.start, (first, first + row.num_encoder))

    def _read(self, inputs: Sequence[EncoderInput], spans: Sequence[AdapterSpan] = ()) -> None:
        """Encode rows and store what the decoder's layers make of it."""
        self._take_in(self._encoder.encode(inputs, spans), inputs, spans)

    def _take_in(
        self,
        encoded: torch.Tensor,
        inputs: Sequence[EncoderInput],
        spans: Sequence[AdapterSpan] = (),
    ) -> None:
        """Store what the decoder's layers make of encoded rows, [1, N, D]."""
        slots = [
            slot
            for each in inputs
            for slot in range(each.kv_start, each.kv_start + len(each.embeddings))
        ]
        where = torch.tensor(slots, dtype=torch.long, device=self._device)
        self._positions.set([0], self._device)
        self._step.set(ReadingStep(self._biases))
        with self._delta_layers.adding(spans, num_tokens=len(slots), paths=self._reading_layers):
            self._decoder(
                inputs_embeds=self._nothing,
                encoder_hidden_states=encoded,
                past_key_values=reading_cache(self.memory.arena, where),
                use_cache=True,
            )

    def _decode(self, parts: Sequence[_Part]) -> torch.Tensor:
        """Logits of the step's tokens, [N, V]."""
        slots: list[int] = []
        positions: list[int] = []
        rows: list[PackedRow] = []
        for each in parts:
            count = len(each.embeddings)
            stop = each.start + count
            mask = None
            if count > 1:
                ones = torch.ones(count, stop, dtype=torch.bool, device=self._device)
                mask = ones.tril(diagonal=each.start)
            rows.append(PackedRow(len(slots), count, each.kv_start, each.kv_start + stop, mask))
            slots.extend(range(each.kv_start + each.start, each.kv_start + stop))
            positions.extend(range(each.start, stop))
        self._positions.set(positions, self._device)
        self._step.set(
            DecoderStep(
                self.memory.arena,
                torch.tensor(slots, dtype=torch.long, device=self._device),
                tuple(rows),
                tuple(each.encoder_span for each in parts),
                self._biases,
                self._stand_in,
            )
        )
        output = self._model(
            encoder_outputs=MoEModelOutput(last_hidden_state=self._nothing),
            decoder_inputs_embeds=torch.cat([each.embeddings for each in parts])[None],
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _learn_layers(self) -> None:
        """See which linear layers see what the encoder reads, and which the decoder's tokens."""
        two = self._nothing[0].expand(2, -1)
        inputs = [EncoderInput(two, 0)]
        self._encoder.learn_layers(inputs)
        encoded = self._encoder.encode(inputs, ())
        with self._delta_layers.watching(2) as found:
            self._take_in(encoded, inputs)
        self._reading_layers = found
        with self._delta_layers.watching(2):
            self._decode([_Part(two, 0, 16, (0, 2))])

    def _probe(self, base_model: BaseModel) -> None:
        """Compare two rows, decoded together in two steps, with the model's own logits of each."""
        rows = []
        for num_in, num_out in zip(_PROBE_INPUTS, _PROBE_OUTPUTS, strict=True):
            ids = torch.arange(num_in + num_out, device=self._device) * num_in
            ids %= base_model.vocab_size
            # Some models give padding no position of its own, wherever it stands.
            ids[ids == base_model.pad_token_id] = int(ids[-1])
            ids[num_in] = decoder_start_token_id(base_model)
            rows.append(ids.split([num_in, num_out]))
        spans = [(index * 32, index * 32 + n) for index, n in enumerate(_PROBE_INPUTS)]
        if self.memory.allocator.num_tokens < 32 * len(rows):
            raise NotSupportedError(
                f"the key-value cache holds {self.memory.allocator.num_tokens} tokens of base "
                f"model {base_model.name!r}, at least {32 * len(rows)} are needed"
            )
        inputs = [row[0] for row in rows]
        pairs = zip(inputs, spans, strict=True)
        self._read([EncoderInput(self._embed(ids), start) for ids, (start, _) in pairs])
        got: list[list[torch.Tensor]] = [[], []]
        for is_last in (False, True):
            parts = []
            for (_, ids), span in zip(rows, spans, strict=True):
                start = len(ids) - 1 if is_last else 0
                embeddings = self._embed(ids[start:] if is_last else ids[:-1])
                parts.append(_Part(embeddings, start, span[0] + 16, span))
            counts = [len(part.embeddings) for part in parts]
            for found, logits in zip(got, self._decode(parts).split(counts), strict=True):
                found.append(logits)
        for (read, written), found in zip(rows, got, strict=True):
            expected = logits_of(base_model, read.tolist(), written.tolist())
            require_same(base_model, torch.cat(found), expected)
