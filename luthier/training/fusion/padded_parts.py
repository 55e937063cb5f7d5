"""One padded pass for the micro-batches of several trainings: seq2seq models, prefixes of keys and
values, noise on embeddings, and models whose rows cannot be packed.

Rows of all of them stand below each other, padded to the longest. A row is what it is alone,
further right padded::

    job A   | prompt A | tokens ........ |          |
    job B   | prompt B ... | tokens .................|
    job C   | tokens .... |                          |
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.adapters.base import SoftPromptTensors
from luthier.adapters.model_inputs import positions_of, takes_positions
from luthier.adapters.prompts.key_values import cache_of_rows
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import IGNORED_LABEL
from luthier.training.networks.embedding_noise import EmbeddingNoise
from luthier.training.networks.label_head import LabelHead
from luthier.training.networks.network import shifted_right


@dataclass(frozen=True, eq=False)
class PaddedPart:
    """One batch of a pass.

    Args:
        batch: Its rows.
        prompt: Virtual tokens before them.
        key_values: Before each layer's own, [2·L, K, P, Dh], or None.
        noise: Added to the embeddings of tokens, or None.
        number: Of the batch in its training; decides the noise.
    """

    batch: TokenBatch
    prompt: SoftPromptTensors
    key_values: torch.Tensor | None = None
    noise: EmbeddingNoise | None = None
    number: int = 0

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.batch.input_ids)

    @property
    def kind(self) -> tuple[int, bool]:
        """What parts of one pass have in common. Positions after keys and values are those of the
        whole pass, and a decoder is either given embeddings or tokens."""
        return self.num_cached, self.prompt.decoder is not None

    @property
    def num_cached(self) -> int:
        """Positions that the keys and values take."""
        return 0 if self.key_values is None else self.key_values.shape[2]

    def widths(self, *, is_seq2seq: bool) -> tuple[int, int]:
        """Columns of the stack that reads the input, and of a decoder behind it, 0 for none."""
        read, written = self.batch.input_ids.shape[1], self.batch.labels.shape[1]
        if not is_seq2seq:
            return _length(self.prompt.decoder) + read, 0
        return _length(self.prompt.encoder) + read, _length(self.prompt.decoder) + written

    @property
    def labels(self) -> torch.Tensor:
        """What is learned, row after row, [N]."""
        return self.batch.labels[self.batch.labels != IGNORED_LABEL]

    @property
    def starts_with_label(self) -> bool:
        """Whether a causal row begins with a label that nothing stands before."""
        return self.prompt.decoder is None and bool((self.batch.labels[:, 0] >= 0).any())


class PaddedParts:
    """Runs parts through a network of its own around the base's tensors.

    Args:
        base_model: The frozen base.
        model: The network.
        label_head: Of the network.
    """

    def __init__(
        self, base_model: BaseModel, model: PreTrainedModel, label_head: LabelHead
    ) -> None:
        self.model = model
        self.label_head = label_head
        self._base_model = base_model
        self._is_seq2seq = base_model.kind == "seq2seq"
        self._embed: nn.Module = model.get_input_embeddings()

    def widths(self, parts: Sequence[PaddedPart]) -> tuple[int, int]:
        """Columns of a pass; the decoder's differ from the encoder's, so that a layer can tell by
        its input to which of them it belongs."""
        widths = [part.widths(is_seq2seq=self._is_seq2seq) for part in parts]
        read, written = (max(columns) for columns in zip(*widths, strict=True))
        return read, written + int(written == read)

    def run(self, parts: Sequence[PaddedPart]) -> torch.Tensor:
        """One pass for several batches, which do not see each other.

        Args:
            parts: All alike in ``PaddedPart.kind``.

        Returns:
            Logits of the labelled places, [1, N, V], part after part and row after row; empty where
            the label head keeps hidden states.
        """
        read, written = self.widths(parts)
        decoder_ids = self._decoder_ids(parts)
        texts, decoder_texts = self._embeddings(parts, decoder_ids)
        prompts = [p.prompt.encoder if self._is_seq2seq else p.prompt.decoder for p in parts]
        mask = torch.cat(
            [
                _padded(
                    functional.pad(part.batch.attention_mask, (_length(prompt), 0), value=1), read
                )
                for part, prompt in zip(parts, prompts, strict=True)
            ]
        )
        mask = functional.pad(mask, (0 if self._is_seq2seq else parts[0].num_cached, 0), value=1)
        inputs: dict[str, object] = {
            "inputs_embeds": _rows(prompts, texts, read),
            "attention_mask": mask,
            "past_key_values": self._cache(parts),
        }
        if self._is_seq2seq and decoder_texts is not None:
            decoder_prompts = [part.prompt.decoder for part in parts]
            inputs["decoder_inputs_embeds"] = _rows(decoder_prompts, decoder_texts, written)
        elif self._is_seq2seq:
            inputs["decoder_input_ids"] = torch.cat(
                [_padded(each, written) for each in decoder_ids]
            )
        elif takes_positions(self.model.__class__):
            inputs["position_ids"] = positions_of(mask)[:, parts[0].num_cached :]
        self.label_head.choose(*self._places(parts))
        given = {name: value for name, value in inputs.items() if value is not None}
        logits: torch.Tensor = self.model(use_cache=False, **given).logits
        return logits

    def _embeddings(
        self, parts: Sequence[PaddedPart], decoder_ids: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """What each part reads, [B, T, D] each, and what its decoder reads, if that cannot be left
        to the model. Noise comes in the order in which a pass of a training alone draws it: that of
        ``prepare_inputs`` with a prompt before the decoder, else the model's."""
        decoder_embed = (
            self.model.get_decoder().get_input_embeddings() if self._is_seq2seq else None
        )
        is_noisy = decoder_embed is self._embed and any(part.noise for part in parts)
        is_embedded = self._is_seq2seq and (is_noisy or parts[0].prompt.decoder is not None)
        has_decoder_prompt = parts[0].prompt.decoder is not None
        texts, decoder_texts = [], []
        for part, ids in zip(parts, decoder_ids, strict=True):
            with _applied(part):
                if is_embedded and has_decoder_prompt:
                    decoder_texts.append(_noisy(part, self._embed(ids)))
                texts.append(_noisy(part, self._embed(part.batch.input_ids)))
                if is_embedded and not has_decoder_prompt:
                    decoder_texts.append(_noisy(part, self._embed(ids)))
        return texts, decoder_texts if is_embedded else None

    def _decoder_ids(self, parts: Sequence[PaddedPart]) -> list[torch.Tensor]:
        if not self._is_seq2seq:
            return [part.batch.input_ids for part in parts]
        return [shifted_right(part.batch.labels, self.model.config) for part in parts]

    def _cache(self, parts: Sequence[PaddedPart]) -> object:
        if parts[0].key_values is None:
            return None
        base = self._base_model
        of_rows = [
            part.key_values.to(device=base.device, dtype=base.dtype)[:, None].expand(
                -1, part.num_rows, -1, -1, -1
            )
            for part in parts
            if part.key_values is not None
        ]
        return cache_of_rows(torch.cat(of_rows, dim=1), is_seq2seq=self._is_seq2seq)

    def _places(self, parts: Sequence[PaddedPart]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the states that labels are predicted from."""
        starts = itertools.accumulate([part.num_rows for part in parts], initial=0)
        rows, columns = [], []
        for part, start in zip(parts, starts, strict=False):
            in_batch, label_columns = torch.nonzero(
                part.batch.labels != IGNORED_LABEL, as_tuple=True
            )
            rows.append(in_batch + start)
            # A causal model's state at one token predicts the next; a decoder reads shifted labels.
            first = _length(part.prompt.decoder) - int(not self._is_seq2seq)
            columns.append(label_columns + first)
        return torch.cat(rows), torch.cat(columns)


def _applied(part: PaddedPart) -> contextlib.AbstractContextManager[None]:
    if part.noise is None:
        return contextlib.nullcontext()
    return part.noise.applied(part.batch.attention_mask, batch=part.number)


def _noisy(part: PaddedPart, embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings if part.noise is None else part.noise.noisy(embeddings)


def _rows(
    prompts: Sequence[torch.Tensor | None], texts: Sequence[torch.Tensor], width: int
) -> torch.Tensor:
    """Virtual tokens, then a part's own, then zeros: [rows of all parts, width, D]."""
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        if prompt is not None:
            moved = prompt.to(device=text.device, dtype=text.dtype)
            text = torch.cat([moved.expand(len(text), -1, -1), text], dim=1)
        rows.append(functional.pad(text, (0, 0, 0, width - text.shape[1])))
    return torch.cat(rows)


def _padded(rows: torch.Tensor, width: int) -> torch.Tensor:
    """[B, T] with zeros up to the width."""
    return functional.pad(rows, (0, width - rows.shape[1]))


def _length(prompt: torch.Tensor | None) -> int:
    return 0 if prompt is None else prompt.shape[0]
