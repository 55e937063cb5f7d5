"""A request made a row: its prompt and its answer, checked before anything runs."""

from __future__ import annotations

import dataclasses

from luthier.errors import InvalidInputError
from luthier.inference.base import ClassificationRequest, Request
from luthier.inference.batch_rows import BatchRow
from luthier.inference.beam_rows import BeamGroup
from luthier.inference.memory.kv_cache import BLOCK_TOKENS, whole_blocks
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.options import EngineOptions
from luthier.inference.prompts import Prompt, prepare_prompt
from luthier.inference.runners.row_forward import decoder_start_token_id, prior_token_ids
from luthier.inference.sampling.model_defaults import model_defaults
from luthier.inference.scored_sequence import ScoredSequence
from luthier.inference.sequences import GeneratedSequence, RowSequence, Vocabulary
from luthier.resources.base_model import BaseModel


class Admission:
    """Makes the rows of one engine. Thread-safe: it changes nothing.

    Args:
        base_model: What the rows run on.
        options: Limits.
        memory: For keys and values; only its size and shape are looked at.
    """

    def __init__(self, base_model: BaseModel, options: EngineOptions, memory: KvMemory) -> None:
        self._base_model = base_model
        self._options = options
        self._num_tokens = memory.allocator.num_tokens
        self._shape = memory.arena.shape
        self._vocabulary = Vocabulary(base_model.tokenizer, frozenset(base_model.eos_token_ids))
        self._defaults = model_defaults(base_model.model)
        is_seq2seq = base_model.kind == "seq2seq"
        self._decoder_start_ids = (decoder_start_token_id(base_model),) if is_seq2seq else None

    def row_of(self, request: Request, *, adapter_key: str, is_bare: bool) -> BatchRow:
        """The row of a request, or the first of its beams.

        Args:
            request: With the adapter that it is to run with.
            adapter_key: The adapter's content hash, "" for the bare base.
            is_bare: Whether the prompt is that of the bare base: the adapter changes layers only.

        Returns:
            A new row.

        Raises:
            InvalidInputError: If the prompt cannot be read, does not fit the model's context or
                the memory, the adapter's keys and values are of another shape than the model's, or
                too many beams are asked for.
        """
        num_beams = _num_beams(request)
        self._options.check_beams(num_beams)
        prompted = dataclasses.replace(request, adapter=None) if is_bare else request
        own_tokens = None if request.adapter is None else request.adapter.own_tokens()
        prompt = prepare_prompt(self._base_model, prompted, own_tokens=own_tokens)
        self._check_key_values(prompt)
        prompt = self._fitting(prompt, num_beams)
        sequence = self._sequence(request, prompt)
        start_ids = self._decoder_start_ids
        if num_beams == 1:
            return BatchRow(sequence, adapter_key=adapter_key, decoder_start_ids=start_ids)
        assert isinstance(sequence, GeneratedSequence)
        group = BeamGroup(sequence, adapter_key=adapter_key, decoder_start_ids=start_ids)
        return group.rows[0]

    def _check_key_values(self, prompt: Prompt) -> None:
        if prompt.key_values is None:
            return
        shape = self._shape
        expected = (2 * shape.num_layers, shape.num_kv_heads, shape.head_dim)
        layers, heads, _, size = prompt.key_values.shape
        if (layers, heads, size) != expected:
            raise InvalidInputError(
                f"the adapter's prefix has {layers // 2} layers of {heads} heads of {size} numbers,"
                f" base model {self._base_model.name!r} has {shape.num_layers} layers of "
                f"{shape.num_kv_heads} heads of {shape.head_dim}"
            )

    def _sequence(self, request: Request, prompt: Prompt) -> RowSequence:
        if isinstance(request, ClassificationRequest):
            return ScoredSequence(request, prompt=prompt)
        return GeneratedSequence(
            request,
            prompt=prompt,
            vocabulary=self._vocabulary,
            prior_token_ids=prior_token_ids(self._base_model, prompt),
            defaults=self._defaults,
        )

    def _fitting(self, prompt: Prompt, num_beams: int) -> Prompt:
        """The prompt with its room cut to what the arena holds, for each of its beams."""
        num_asked = prompt.num_decoder_virtual_tokens + len(prompt.token_ids)
        num_used, num_encoder = num_asked, 0
        if self._decoder_start_ids is not None:
            num_asked += prompt.num_encoder_virtual_tokens + len(self._decoder_start_ids)
            num_encoder = prompt.num_encoder_virtual_tokens + len(prompt.token_ids)
            num_used = num_asked - num_encoder
        num_left = self._num_tokens - whole_blocks(num_encoder)
        num_held = num_left // num_beams // BLOCK_TOKENS * BLOCK_TOKENS
        if num_used >= num_held:
            for_each = f" for each of {num_beams} beams" if num_beams > 1 else ""
            raise InvalidInputError(
                f"the prompt has {num_asked} tokens, virtual ones included; the engine's key-value "
                f"cache holds {self._num_tokens // num_beams}{for_each}"
            )
        room = num_held - num_used if prompt.room is None else min(prompt.room, num_held - num_used)
        return dataclasses.replace(prompt, room=room)


def _num_beams(request: Request) -> int:
    return 1 if isinstance(request, ClassificationRequest) else request.sampling.num_beams
