"""One row's forward passes through transformers' own model code, with a KV cache of its own.

Nothing here is shared between rows: the model is only read. That is what PEFT's ``generate`` does
not give, which swaps a method of the shared model in and out on every call.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from luthier.errors import NotSupportedError
from luthier.inference.prompts import Prompt
from luthier.resources.base_model import BaseModel


class RowForward(ABC):
    """Logits for one row, token after token.

    Call ``prefill`` once, then ``step`` with each token that was chosen.
    """

    @abstractmethod
    def prefill(self, prompt: Prompt, *, wants_prompt_logits: bool) -> torch.Tensor:
        """Run the prompt.

        Args:
            prompt: What comes before the first generated token.
            wants_prompt_logits: Whether the prompt tokens' own logits are asked for.

        Returns:
            [N, V]; the last row predicts the first generated token. With ``wants_prompt_logits``
            a causal model gives one row per prompt token, T in all.
        """

    @abstractmethod
    def step(self, token_id: int) -> torch.Tensor:
        """Run one more token; returns [V], which predict the next."""


def row_forward(base_model: BaseModel) -> RowForward:
    """The forward passes that fit the base model's kind."""
    if base_model.kind == "seq2seq":
        return Seq2SeqRowForward(base_model)
    return CausalRowForward(base_model)


def prior_token_ids(base_model: BaseModel, prompt: Prompt) -> Sequence[int]:
    """Tokens that were said before the first generated one, as transformers counts them."""
    if base_model.kind == "seq2seq":
        return (decoder_start_token_id(base_model),)
    return prompt.token_ids


def decoder_start_token_id(base_model: BaseModel) -> int:
    """The token a seq2seq decoder starts from.

    Raises:
        NotSupportedError: If the model's configuration names none.
    """
    model = base_model.model
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token_id = getattr(config, name, None)
            if isinstance(token_id, int):
                return token_id
    raise NotSupportedError(
        f"base model {base_model.name!r} names no 'decoder_start_token_id' to start decoding from"
    )


class CausalRowForward(RowForward):
    """A decoder-only model: soft prompt, prompt and answer in one sequence."""

    def __init__(self, base_model: BaseModel) -> None:
        self._model = base_model.model
        self._device = base_model.device
        self._cache: Any = None
        self._num_seen = 0
        self._takes_logits_to_keep = _accepts(self._model, "logits_to_keep")

    def prefill(self, prompt: Prompt, *, wants_prompt_logits: bool) -> torch.Tensor:
        """Run soft prompt and prompt; see ``RowForward``."""
        ids = torch.tensor([prompt.token_ids], dtype=torch.long, device=self._device)
        num_rows = max(1, len(prompt.token_ids)) if wants_prompt_logits else 1
        if prompt.soft_prompt.decoder is None:
            return self._forward(num_rows, ids.shape[1], input_ids=ids)
        inputs_embeds = join_embeddings(self._model, prompt.soft_prompt.decoder, ids)
        return self._forward(num_rows, inputs_embeds.shape[1], inputs_embeds=inputs_embeds)

    def step(self, token_id: int) -> torch.Tensor:
        """Run one more token; see ``RowForward``."""
        return self._forward(1, 1, input_ids=torch.tensor([[token_id]], device=self._device))[0]

    def _forward(self, num_rows: int, num_new: int, **inputs: torch.Tensor) -> torch.Tensor:
        self._num_seen += num_new
        keep = {"logits_to_keep": num_rows} if self._takes_logits_to_keep else {}
        output = self._model(
            **inputs,
            attention_mask=torch.ones(1, self._num_seen, dtype=torch.long, device=self._device),
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **keep,
        )
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits
        return logits[0, -num_rows:]


class Seq2SeqRowForward(RowForward):
    """An encoder-decoder model: the encoder once, then the decoder token by token."""

    def __init__(self, base_model: BaseModel) -> None:
        self._model = base_model.model
        self._device = base_model.device
        self._start_token_id = decoder_start_token_id(base_model)
        self._cache: Any = None
        self._encoded: Any = None
        self._encoder_mask: torch.Tensor | None = None

    def prefill(self, prompt: Prompt, *, wants_prompt_logits: bool) -> torch.Tensor:
        """Run the encoder and the decoder's start; prompt tokens of an encoder have no logits."""
        ids = torch.tensor([prompt.token_ids], dtype=torch.long, device=self._device)
        embeddings = join_embeddings(self._model, prompt.soft_prompt.encoder, ids)
        self._encoder_mask = torch.ones(
            1, embeddings.shape[1], dtype=torch.long, device=self._device
        )
        self._encoded = self._model.get_encoder()(
            inputs_embeds=embeddings, attention_mask=self._encoder_mask, return_dict=True
        )
        start = torch.tensor([[self._start_token_id]], device=self._device)
        if prompt.soft_prompt.decoder is None:
            return self._forward(decoder_input_ids=start)
        return self._forward(
            decoder_inputs_embeds=join_embeddings(self._model, prompt.soft_prompt.decoder, start)
        )

    def step(self, token_id: int) -> torch.Tensor:
        """Run one more token; see ``RowForward``."""
        ids = torch.tensor([[token_id]], device=self._device)
        return self._forward(decoder_input_ids=ids)[0]

    def _forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        output = self._model(
            **inputs,
            encoder_outputs=self._encoded,
            attention_mask=self._encoder_mask,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        )
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits
        return logits[0, -1:]


def join_embeddings(
    model: Any, soft_prompt: torch.Tensor | None, token_ids: torch.Tensor
) -> torch.Tensor:
    """Put virtual tokens before embedded ones, as PEFT does.

    Args:
        model: A transformers model.
        soft_prompt: [P, D] or None.
        token_ids: [1, T].

    Returns:
        [1, P + T, D].
    """
    embeddings: torch.Tensor = model.get_input_embeddings()(token_ids)
    if soft_prompt is None:
        return embeddings
    return torch.cat([soft_prompt[None].to(embeddings.dtype), embeddings], dim=1)


def _accepts(model: Any, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters
