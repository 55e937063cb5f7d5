"""What a base model is fed when an adapter stands before it: the same for training and inference.

    causal                     seq2seq
    [soft prompt | tokens]     encoder: [soft prompt | tokens]   decoder: [soft prompt | tokens]

A prefix of keys and values takes positions like virtual tokens, and comes in a cache instead.

Rows may be padded on either side. A soft prompt stands before the padding, as in PEFT; the mask
hides the padding and positions count only what is seen, so a padded row gives what it gives alone.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.prompts.key_values import prefix_cache

if TYPE_CHECKING:
    from luthier.resources.base_model import BaseModel


@dataclass(frozen=True)
class ModelInputs:
    """Arguments of one forward pass, and the network to pass them to.

    Args:
        model: The base model's network, or the tuned copy for full fine-tuning.
        inputs_embeds: Causal: [B, P + T, D]; seq2seq: the encoder's input, likewise.
        attention_mask: 1 for virtual tokens and real tokens, 0 for padding, [B, P + T].
        position_ids: Of the embeddings, [B, P + T] (after a prefix of keys and values, [B, T]), for
            causal models that take them, else None.
        decoder_inputs_embeds: [B, P + U, D] if virtual tokens stand before the decoder.
        decoder_input_ids: [B, U] otherwise; None for causal models.
        decoder_attention_mask: [B, P + U], if one was given.
        past_key_values: A prefix of keys and values for each row, in a cache of its own; None for
            none.
        num_prefix_positions: P of the embeddings before the tokens of the stack that makes logits:
            logits [B, P + U, V] at ``num_prefix_positions + t`` belong to token t.
    """

    model: PreTrainedModel
    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor | None = None
    decoder_inputs_embeds: torch.Tensor | None = None
    decoder_input_ids: torch.Tensor | None = None
    decoder_attention_mask: torch.Tensor | None = None
    past_key_values: Cache | None = None
    num_prefix_positions: int = 0

    def as_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``model.forward``; nothing that is None."""
        names = (
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            "decoder_inputs_embeds",
            "decoder_input_ids",
            "decoder_attention_mask",
            "past_key_values",
        )
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


def prepare_inputs(
    base_model: BaseModel,
    adapter: Adapter | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    decoder_input_ids: torch.Tensor | None = None,
    decoder_attention_mask: torch.Tensor | None = None,
    embed: nn.Module | None = None,
) -> ModelInputs:
    """Turn token ids into what the model is fed: virtual tokens first, differentiable in them.

    Args:
        base_model: The frozen base.
        adapter: Its tuned delta, or None for the bare base.
        input_ids: [B, T], on the base's device; T may be 0 if there are virtual tokens.
        attention_mask: 1 for tokens, 0 for padding, [B, T]; None if nothing is padded.
        decoder_input_ids: What a seq2seq decoder has so far, [B, U], beginning with its start
            token.
        decoder_attention_mask: [B, U]; None if nothing before a token is padded.
        embed: Used in place of the model's input embeddings: the same ones with a hook.

    Returns:
        Arguments for one forward pass of ``ModelInputs.model``.

    Source:
        Logits equal those of PEFT 0.21 (``PeftModelForCausalLM.forward``,
        ``PeftModelForSeq2SeqLM.forward``) for rows padded on the right or not at all.
    """
    model = base_model.model if adapter is None else adapter.tuned_model(base_model.model)
    prompt = SoftPromptTensors() if adapter is None else adapter.soft_prompt()
    embed = model.get_input_embeddings() if embed is None else embed
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    key_values = None if adapter is None else adapter.prefix_key_values()
    cache, num_cached = None, 0
    if key_values is not None:
        moved = key_values.to(device=base_model.device, dtype=base_model.dtype)
        cache = prefix_cache(
            moved, num_rows=len(input_ids), is_seq2seq=base_model.kind == "seq2seq"
        )
        num_cached = key_values.shape[2]
    if base_model.kind == "causal":
        mask = _more_ones(_prefix_ones(prompt.decoder, attention_mask), num_cached)
        return ModelInputs(
            model=model,
            inputs_embeds=_prefix(prompt.decoder, embed(input_ids)),
            attention_mask=mask,
            position_ids=positions_of(mask)[:, num_cached:]
            if takes_positions(model.__class__)
            else None,
            past_key_values=cache,
            num_prefix_positions=_length(prompt.decoder),
        )
    decoder_inputs_embeds = None
    if prompt.decoder is not None and decoder_input_ids is not None:
        decoder_inputs_embeds = _prefix(prompt.decoder, embed(decoder_input_ids))
        if decoder_attention_mask is not None:
            decoder_attention_mask = _prefix_ones(prompt.decoder, decoder_attention_mask)
    if decoder_attention_mask is not None:
        decoder_attention_mask = _more_ones(decoder_attention_mask, num_cached)
    return ModelInputs(
        model=model,
        inputs_embeds=_prefix(prompt.encoder, embed(input_ids)),
        attention_mask=_prefix_ones(prompt.encoder, attention_mask),
        decoder_inputs_embeds=decoder_inputs_embeds,
        decoder_input_ids=decoder_input_ids if decoder_inputs_embeds is None else None,
        decoder_attention_mask=decoder_attention_mask,
        past_key_values=cache,
        num_prefix_positions=_length(prompt.decoder),
    )


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions that count only what is seen, [B, T]; padding before the first token is at 0."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def _prefix(prompt: torch.Tensor | None, embeddings: torch.Tensor) -> torch.Tensor:
    """[P, D] before every row of [B, T, D]."""
    if prompt is None:
        return embeddings
    rows = prompt.to(device=embeddings.device, dtype=embeddings.dtype)
    return torch.cat((rows.expand(embeddings.shape[0], -1, -1), embeddings), dim=1)


def _prefix_ones(prompt: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
    return (
        mask if prompt is None else torch.cat((mask.new_ones(mask.shape[0], len(prompt)), mask), 1)
    )


def _more_ones(mask: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat((mask.new_ones(mask.shape[0], count), mask), dim=1) if count else mask


def _length(prompt: torch.Tensor | None) -> int:
    return 0 if prompt is None else prompt.shape[0]


@functools.cache
def takes_positions(model_class: type[PreTrainedModel]) -> bool:
    """Whether a network can be told where its tokens stand."""
    return "position_ids" in inspect.signature(model_class.forward).parameters
