"""P-tuning: a soft prompt that is learned through a small network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.prompts.prompt_encoders import LstmEncoder, MlpEncoder
from luthier.adapters.prompts.soft_prompt import (
    BaseModelKind,
    PromptPlace,
    check_places,
    check_prompt,
    prompt_config,
)
from luthier.data_model.options.prompt_encoder import LSTM, PromptEncoderOptions
from luthier.errors import NotSupportedError

P_TUNING_TYPE = "P_TUNING"
_INIT_KEYS = ("prompt_tuning_init", "prompt_tuning_init_text")
_TOKENIZER_KEYS = ("tokenizer_kwargs", "tokenizer_name_or_path")


class PTuning(Adapter):
    """Virtual tokens ``encoder(embedding)`` before a causal model's input or a seq2seq encoder's.

    Once it is tuned, the tokens that come out of the encoder are all that counts: PEFT saves
    nothing else, so what is read from a folder has no encoder, and learns its tokens directly.

    Args:
        embedding: What goes into the encoder, or the virtual tokens themselves, [P, D]. Copied.
        encoder: [P, D] -> [P, D]; None for none. Taken over.
        kind: Of the base model.
        options: What the encoder is or was like.

    Raises:
        InvalidInputError: If ``embedding`` is no prompt.

    Source:
        Liu et al. 2021, https://arxiv.org/abs/2103.10385
    """

    method: ClassVar[str] = "p_tuning"

    def __init__(
        self,
        embedding: torch.Tensor,
        encoder: MlpEncoder | LstmEncoder | None = None,
        *,
        kind: BaseModelKind,
        options: PromptEncoderOptions,
    ) -> None:
        self.kind: BaseModelKind = kind
        self.places = p_tuning_places(kind)
        check_prompt(embedding, num_places=1)
        self.options = options
        self.embedding = nn.Parameter(embedding.detach().clone())
        self.encoder = encoder

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.embedding.shape[0]

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.embedding.shape[1]

    @property
    def has_dropout(self) -> bool:
        """Whether training draws random numbers."""
        is_lstm = self.options.reparameterization_type == LSTM
        return self.encoder is not None and is_lstm and self.options.dropout > 0

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``embedding.weight`` and the encoder's, or ``prompt_embeddings`` if there is none."""
        if self.encoder is None:
            yield "prompt_embeddings", self.embedding
            return
        yield "embedding.weight", self.embedding
        yield from self.encoder.named_parameters()

    def soft_prompt(self) -> SoftPromptTensors:
        """What comes out of the encoder, [P, D]."""
        tokens = self.embedding if self.encoder is None else self.encoder(self.embedding)
        is_decoder = self.places == ("decoder",)
        return SoftPromptTensors(
            decoder=tokens if is_decoder else None, encoder=None if is_decoder else tokens
        )

    def served(self) -> Self:
        """The virtual tokens without the encoder."""
        if self.encoder is None:
            return self
        return type(self)(self._tokens(), kind=self.kind, options=self.options)

    def peft_config(self) -> dict[str, Any]:
        """PEFT's ``PromptEncoderConfig``."""
        config = prompt_config(self, peft_type=P_TUNING_TYPE)
        for key in (*_INIT_KEYS, *_TOKENIZER_KEYS):
            del config[key]
        return {
            **config,
            "encoder_dropout": self.options.dropout,
            "encoder_hidden_size": self.options.hidden_size or self.hidden_size,
            "encoder_num_layers": self.options.num_layers,
            "encoder_reparameterization_type": self.options.reparameterization_type,
        }

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """``prompt_embeddings``: what comes out of the encoder."""
        return {"prompt_embeddings": self._tokens()}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` without the encoder (self if nothing changes)."""
        if self.embedding.device == device and self.embedding.dtype == dtype:
            return self
        tokens = self._tokens().to(device=device, dtype=dtype)
        return type(self)(tokens, kind=self.kind, options=self.options)

    def placed_on(self, device: torch.device) -> Self:
        """The adapter itself, moved with its encoder to where it will be learned."""
        if self.embedding.device != device:
            self.embedding = nn.Parameter(self.embedding.detach().to(device))
            if self.encoder is not None:
                self.encoder.to(device)
        return self

    def _tokens(self) -> torch.Tensor:
        with torch.no_grad():
            prompt = self.soft_prompt()
        tokens = prompt.encoder if prompt.decoder is None else prompt.decoder
        assert tokens is not None
        return tokens.detach()

    def _hashed_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.peft_state().items()

    def _settings(self) -> list[object]:
        return [self.kind, *self.places]


def new_p_tuning(
    num_virtual_tokens: int,
    hidden_size: int,
    *,
    kind: BaseModelKind,
    options: PromptEncoderOptions,
    generator: torch.Generator,
) -> PTuning:
    """P-tuning before its first update, as PEFT starts it.

    Args:
        num_virtual_tokens: P.
        hidden_size: Of the base model, D.
        kind: Of the base model.
        options: Of the encoder, validated.
        generator: On the CPU; advanced.

    Returns:
        The adapter, on the CPU in float32.
    """
    embedding = torch.empty(num_virtual_tokens, hidden_size).normal_(generator=generator)
    inner_size = options.hidden_size or hidden_size
    encoder: MlpEncoder | LstmEncoder
    if options.reparameterization_type == LSTM:
        encoder = LstmEncoder(hidden_size, options, inner_size, generator)
    else:
        encoder = MlpEncoder(hidden_size, inner_size, generator)
    return PTuning(embedding, encoder, kind=kind, options=options)


def p_tuning_places(kind: BaseModelKind) -> tuple[PromptPlace, ...]:
    """Where PEFT puts the virtual tokens: before the input of the model.

    Args:
        kind: Of the base model.

    Returns:
        One place.
    """
    return check_places(("decoder",) if kind == "causal" else ("encoder",), kind=kind)


def require_input_place(places: tuple[PromptPlace, ...], *, kind: BaseModelKind) -> None:
    """Refuse places that P-tuning does not know.

    Args:
        places: That were asked for.
        kind: Of the base model.

    Raises:
        NotSupportedError: Naming both.
    """
    if places != p_tuning_places(kind):
        raise NotSupportedError(
            f"P-tuning puts virtual tokens before {p_tuning_places(kind)[0]} of a {kind} base "
            f"model, got {list(places)}"
        )
