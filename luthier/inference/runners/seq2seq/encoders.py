"""How the encoders of new rows run: all in one pass, or each by itself.

```
    packed:   one pass over | A's input | B's input | ...      attention replaced, each sees itself
    alone:    a pass over A's input, one over B's, ...         the model's own attention
```

Encoders that attend in blocks (LED, LongT5, Pegasus-X), or whose experts take a limited number of
tokens of a text, give other numbers when rows are laid end to end. They read each row alone; what
comes after an encoder is the same for all.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from luthier.inference.deltas.delta_layers import DeltaLayers
from luthier.inference.deltas.delta_steps import AdapterSpan
from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.seq2seq.cross_attention import AttentionStep, EncoderStep
from luthier.inference.runners.seq2seq.packed_positions import PackedPositions
from luthier.inference.runners.seq2seq.relative_positions import RelativePositions


@dataclass(frozen=True)
class EncoderInput:
    """What an encoder reads for one row.

    Args:
        embeddings: [E, D].
        kv_start: Where what the decoder makes of it starts in the arena.
        adapter_key: Of the adapter that changes layers for this row; "" for none.
    """

    embeddings: torch.Tensor
    kv_start: int
    adapter_key: str = ""


class Encoder(ABC):
    """Encodes rows."""

    @abstractmethod
    def encode(self, inputs: Sequence[EncoderInput], spans: Sequence[AdapterSpan]) -> torch.Tensor:
        """Encode rows, each as if it were alone.

        Args:
            inputs: One per row.
            spans: Of the first tokens of all of them, laid end to end.

        Returns:
            The rows end to end, [1, N, D].
        """

    @abstractmethod
    def learn_layers(self, inputs: Sequence[EncoderInput]) -> None:
        """See from a pass which layers adapters can do something to.

        Args:
            inputs: Of at least two tokens.
        """


class PackedEncoder(Encoder):
    """One pass for all rows.

    Args:
        encoder: A network that attends by ``encoder_decoder_attention``.
        layers: Those of the network that it is a part of.
        step: The network's.
        positions: Likewise.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        layers: DeltaLayers,
        step: CurrentStep[AttentionStep],
        positions: PackedPositions,
    ) -> None:
        self._encoder = encoder
        self._layers = layers
        self._step = step
        self._positions = positions
        self._biases = RelativePositions(encoder)
        self._paths: set[str] = set()

    def encode(self, inputs: Sequence[EncoderInput], spans: Sequence[AdapterSpan]) -> torch.Tensor:
        """Encode all rows at once; see ``Encoder``."""
        embeddings = torch.cat([each.embeddings for each in inputs])
        counts = [len(each.embeddings) for each in inputs]
        firsts = itertools.accumulate(counts, initial=0)
        self._positions.set([i for count in counts for i in range(count)], embeddings.device)
        self._step.set(EncoderStep(tuple(zip(firsts, counts, strict=False)), self._biases))
        with self._layers.adding(spans, num_tokens=len(embeddings), paths=self._paths):
            output = self._encoder(inputs_embeds=embeddings[None], return_dict=True)
        encoded: torch.Tensor = output.last_hidden_state
        return encoded

    def learn_layers(self, inputs: Sequence[EncoderInput]) -> None:
        """Layers that see every token once; see ``Encoder``."""
        with self._layers.watching(sum(len(each.embeddings) for each in inputs)) as found:
            self.encode(inputs, ())
        self._paths = found


class LoneEncoder(Encoder):
    """A pass for each row, by the model's own code.

    Args:
        encoder: A network that attends in its own way.
        layers: Those of the network that it is a part of.
    """

    def __init__(self, encoder: PreTrainedModel, layers: DeltaLayers) -> None:
        self._encoder = encoder
        self._layers = layers
        self._attention = OwnAttentionType(encoder)
        self._paths: set[str] = set()

    def encode(self, inputs: Sequence[EncoderInput], spans: Sequence[AdapterSpan]) -> torch.Tensor:
        """Encode row after row; see ``Encoder``."""
        return torch.cat([self._encode_one(each) for each in inputs], dim=1)

    def _encode_one(self, each: EncoderInput) -> torch.Tensor:
        embeddings = each.embeddings[None]
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        adding = self._layers.adding_to_all(each.adapter_key, self._paths)
        with adding, self._attention.kept(len(each.embeddings)):
            output = self._encoder(inputs_embeds=embeddings, attention_mask=mask, return_dict=True)
        encoded: torch.Tensor = output.last_hidden_state
        return encoded

    def learn_layers(self, inputs: Sequence[EncoderInput]) -> None:
        """Layers of the encoder: all their tokens are one row's; see ``Encoder``."""
        with self._layers.watching_lone(self._encoder) as found:
            self.encode(inputs, ())
        self._paths = found


class OwnAttentionType:
    """The sort of attention of an encoder that changes it for good, as BigBird's does.

    It attends in blocks until a text is too short for that, and fully from then on.

    Args:
        encoder: Any; nothing is done to others.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        self._encoder: Any = encoder if hasattr(encoder, "set_attention_type") else None
        self._type = self._encoder and self._encoder.attention_type
        self._changed = self._type
        self._max_short = 0

    @contextmanager
    def kept(self, num_tokens: int) -> Iterator[None]:
        """Let texts read meanwhile leave no trace, and each be read as if it were the first.

        Args:
            num_tokens: Of a text.
        """
        encoder = self._encoder
        if encoder is None:
            yield
            return
        encoder.set_attention_type(self._changed if num_tokens <= self._max_short else self._type)
        try:
            yield
        finally:
            if encoder.attention_type != self._type:
                self._changed = encoder.attention_type
                self._max_short = max(self._max_short, num_tokens)
            encoder.set_attention_type(self._type)


def give_own_attention(encoder: PreTrainedModel, original: PreTrainedModel) -> None:
    """Let an encoder attend as the one does whose copy it is.

    Args:
        encoder: A copy by ``with_packed_attention``; changed.
        original: Its layers have the configurations that the copy's get copies of.
    """
    memo: dict[int, object] = {}
    for module, source in zip(encoder.modules(), original.modules(), strict=True):
        config = getattr(source, "config", None)
        if isinstance(config, PretrainedConfig):
            module.config = copy.deepcopy(config, memo)
