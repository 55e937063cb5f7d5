"""The frozen base model that any number of adapters share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import alog
import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from luthier.data_model.options.quantisation import NONE
from luthier.errors import ArtifactError, NotSupportedError
from luthier.resources.quantisation import parse_quantisation, quantised_copy
from luthier.resources.shared_tensors import SharedTensors

log = alog.use_channel(__name__)

#: Their state is in their modules, in kernels of their own, or nowhere.
_KEEPS_NOTHING = frozenset({"openai-gpt", "recurrent_gemma", "xlstm"})

BaseModelKind = Literal["causal", "seq2seq"]
#: Attention by distance: these have no largest position, whatever their config says.
_UNBOUNDED_TYPES = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers", "bloom", "mpt"})
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length")


@dataclass(frozen=True, eq=False)
class BaseModel:
    """Pretrained weights with their tokenizer: frozen, never changed in place, shared.

    Args:
        name: What finds it again (``resolve_base_model``); never a local path.
        kind: ``causal`` or ``seq2seq``.
        model: In evaluation mode, no parameter requires a gradient.
        tokenizer: Pads and truncates on the right where it is asked to. Encoding is thread-safe
            as long as nobody passes ``padding`` or ``truncation``, which change its state.
        eos_token_ids: Tokens that end a text: those of the generation config, then the
            tokenizer's.
        pad_token_id: For filling rows; the tokenizer's end-of-sequence where it has no padding.
        max_positions: Tokens it can attend to, or None if nothing bounds them.
        quantization: How the weights of its linear layers are held, a word of ``QUANTISATIONS``.
        shared: The memory of all its tensors, if other processes can map it.
    """

    name: str
    kind: BaseModelKind
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    max_positions: int | None
    quantization: str = NONE
    shared: SharedTensors | None = None

    @classmethod
    def from_memory(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        quantization: str = NONE,
    ) -> BaseModel:
        """Wrap live objects. Takes them over: freezes ``model``, puts it into evaluation mode and
        gives ``tokenizer`` a padding token if it has none.

        Args:
            model: A causal or seq2seq language model.
            tokenizer: Its tokenizer.
            name: What callers shall ask for.
            quantization: How its linear layers are held already.

        Returns:
            The wrapped model, not a copy.

        Raises:
            NotSupportedError: If the model is neither causal nor seq2seq.
        """
        kind = kind_of(model.config, name=name)
        model.requires_grad_(False)
        model.eval()
        _settle_tokenizer(tokenizer, name=name)
        return cls(
            name=name,
            kind=kind,
            model=model,
            tokenizer=tokenizer,
            eos_token_ids=_eos_token_ids(model, tokenizer),
            pad_token_id=int(tokenizer.pad_token_id),
            max_positions=_max_positions(model.config),
            quantization=quantization,
        )

    def quantised(self, word: str | None) -> BaseModel:
        """This model with its linear layers quantised; all other tensors are shared.

        Args:
            word: One of ``QUANTISATIONS``; None is none.

        Returns:
            A new one, or self if that is what it is.

        Raises:
            InvalidInputError: For another word.
            NotSupportedError: If bitsandbytes is not installed, or it is quantised in another way.
        """
        word = parse_quantisation(word)
        if word in (NONE, self.quantization):
            return self
        if self.quantization != NONE:
            raise NotSupportedError(
                f"base model {self.name!r} is quantised as {self.quantization}, not as {word}"
            )
        model = quantised_copy(self.model, word)
        return BaseModel.from_memory(model, self.tokenizer, name=self.name, quantization=word)

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, and so of everything that flows through."""
        return self.embedding_weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.embedding_weight.device

    @property
    def embedding_weight(self) -> torch.Tensor:
        """Input embeddings, [V, D]."""
        weight: torch.Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def hidden_size(self) -> int:
        """D, of the input embeddings."""
        return self.embedding_weight.shape[1]

    @property
    def max_encoder_positions(self) -> int | None:
        """Tokens that a seq2seq model's encoder can read; LED's reads more than it writes."""
        return getattr(self.model.config, "max_encoder_position_embeddings", self.max_positions)

    @property
    def max_decoder_positions(self) -> int | None:
        """Tokens that the decoder can attend to of its own."""
        return getattr(self.model.config, "max_decoder_position_embeddings", self.max_positions)

    @property
    def vocab_size(self) -> int:
        """V, rows of the input embeddings; may exceed the tokenizer's."""
        return self.embedding_weight.shape[0]


def kind_of(config: PretrainedConfig, *, name: str) -> BaseModelKind:
    """Whether a config describes a causal or a seq2seq language model.

    Args:
        config: The model's.
        name: Of the model, for the message.

    Returns:
        ``causal`` or ``seq2seq``.

    Raises:
        NotSupportedError: If it describes neither, such as BERT, or hands out nothing that can be
            handed in again with the next token.
    """
    model_type = config.model_type
    if model_type in _KEEPS_NOTHING:
        raise NotSupportedError(
            f"base model {name!r} is of type {model_type!r}, which hands out neither keys and "
            "values nor a state that it takes back with the next token"
        )
    if config.is_encoder_decoder:
        if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            return "seq2seq"
    elif model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        # NOTE: transformers lists BERT and its family as causal too; without ``is_decoder`` each
        # token sees the ones after it, so they cannot generate.
        model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False)
    ):
        return "causal"
    raise NotSupportedError(
        f"base model {name!r} is of type {model_type!r}, which generates no text; "
        "causal and seq2seq language models are supported"
    )


def _settle_tokenizer(tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ArtifactError(f"base model {name!r}: its tokenizer has no end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    generation_config = getattr(model, "generation_config", None)
    declared = getattr(generation_config, "eos_token_id", None)
    if declared is None:
        declared = getattr(model.config, "eos_token_id", None)
    ids: Iterable[int | None] = declared if isinstance(declared, list | tuple) else [declared]
    ordered = dict.fromkeys([*ids, tokenizer.eos_token_id])
    return tuple(int(token) for token in ordered if token is not None)


def _max_positions(config: PretrainedConfig) -> int | None:
    if config.model_type in _UNBOUNDED_TYPES or getattr(config, "alibi", False):
        return None
    for key in _POSITION_KEYS:
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
