"""One row's forward passes through transformers' own model code, with a KV cache of its own.

Nothing here is shared between rows: the model is only read. That is what PEFT's ``generate`` does
not give, which swaps a method of the shared model in and out on every call.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.model_inputs import prepare_inputs
from luthier.errors import NotSupportedError
from luthier.inference.prompts import Prompt
from luthier.resources.base_model import BaseModel

#: What models call what they keep of the tokens so far: keys and values, or a recurrent state.
_CACHE_NAMES = ("past_key_values", "cache_params", "state")


class RowForward(ABC):
    """Logits for one row, token after token.

    Call ``prefill`` once, then ``step`` with each token that was chosen; or ``steps`` with those
    of several texts that go on from the same prompt.
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

    def last_hidden(self, prompt: Prompt) -> torch.Tensor:
        """Run a prompt that nothing follows.

        Args:
            prompt: All there is.

        Returns:
            What the output layer would read at its last token, [D].

        Raises:
            NotSupportedError: If the model is not causal, or keeps that to itself.
        """
        raise NotSupportedError("only causal base models read a prompt without writing")

    def step(self, token_id: int) -> torch.Tensor:
        """Run one more token; returns [V], which predict the next."""
        return self._steps([token_id])[0]

    def steps(self, token_ids: Sequence[int], *, sources: Sequence[int]) -> torch.Tensor:
        """Run one more token of each of K texts side by side.

        Args:
            token_ids: One per text, [K].
            sources: Which text of the step before each goes on from, [K]; 0 after ``prefill``.

        Returns:
            [K, V], which predict the next.
        """
        self._select(torch.tensor(sources, dtype=torch.long))
        return self._steps(token_ids)

    @abstractmethod
    def _select(self, sources: torch.Tensor) -> None:
        """Make what is kept of each text that of its source."""

    @abstractmethod
    def _steps(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Run one more token of each text; [K, V]."""


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


def positions_change_with_length(model: PreTrainedModel) -> bool:
    """True if the longest row alters how the model encodes every position.

    Such rotary embeddings keep state between calls, so rows must not run side by side.
    """
    kinds = (getattr(module, "rope_type", None) for module in model.modules())
    return any(kind in ("dynamic", "longrope") for kind in kinds)


def decoder_start_token_id(base_model: BaseModel) -> int:
    """The token a seq2seq decoder starts from.

    Args:
        base_model: A seq2seq one.

    Returns:
        Its id.

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
        self._base_model = base_model
        self._model: PreTrainedModel = base_model.model
        self._cache: Any = None
        self._num_seen = 0

    def prefill(self, prompt: Prompt, *, wants_prompt_logits: bool) -> torch.Tensor:
        """Run soft prompt and prompt; see ``RowForward``."""
        ids = _row_of(prompt.token_ids, self._base_model)
        inputs = prepare_inputs(self._base_model, prompt.adapter, ids)
        self._model = inputs.model
        num_rows = max(1, len(prompt.token_ids)) if wants_prompt_logits else 1
        arguments = inputs.as_kwargs()
        arguments.pop("position_ids", None)  # there is no padding
        self._cache = arguments.pop("past_key_values", None)
        self._num_seen = inputs.attention_mask.shape[1] - inputs.inputs_embeds.shape[1]
        return self._forward(num_rows, inputs.inputs_embeds.shape[1], **arguments)[0]

    def last_hidden(self, prompt: Prompt) -> torch.Tensor:
        """Run soft prompt and prompt through all but the output layer; see ``RowForward``."""
        ids = _row_of(prompt.token_ids, self._base_model)
        inputs = prepare_inputs(self._base_model, prompt.adapter, ids)
        arguments = inputs.as_kwargs()
        arguments.pop("position_ids", None)
        body = inputs.model.base_model
        if body is inputs.model:
            raise NotSupportedError(
                f"base model {self._base_model.name!r} does not say what its output layer reads"
            )
        use_cache = "past_key_values" in arguments
        hidden: torch.Tensor = body(
            **arguments, use_cache=use_cache, return_dict=True
        ).last_hidden_state
        return hidden[0, -1]

    def _select(self, sources: torch.Tensor) -> None:
        if not hasattr(self._cache, "reorder_cache"):  # RWKV mixes texts that come together
            raise NotSupportedError(
                f"base model {self._base_model.name!r} writes one text at a time, so no beams"
            )
        self._cache.reorder_cache(sources.to(self._model.device))

    def _steps(self, token_ids: Sequence[int]) -> torch.Tensor:
        ids = _row_of(token_ids, self._base_model).T
        if "past_key_values" not in _arguments_of(self._model.__class__):
            return self._forward(1, 1, input_ids=ids)[:, 0]  # a state has no place for a mask
        shape = (len(token_ids), self._num_seen + 1)
        mask = torch.ones(shape, dtype=torch.long, device=self._model.device)
        return self._forward(1, 1, input_ids=ids, attention_mask=mask)[:, 0]

    def _forward(self, num_rows: int, num_new: int, **inputs: torch.Tensor) -> torch.Tensor:
        accepted = _arguments_of(self._model.__class__)
        cache_name = next((name for name in _CACHE_NAMES if name in accepted), _CACHE_NAMES[0])
        told: dict[str, Any] = {cache_name: self._cache}
        if "logits_to_keep" in accepted:
            told["logits_to_keep"] = num_rows
        if "position_ids" in accepted:  # some models do not count what they have in a cache
            stop = self._num_seen + num_new
            told["position_ids"] = torch.arange(self._num_seen, stop, device=self._model.device)[
                None
            ]
        output = self._model(**inputs, **told, use_cache=True, return_dict=True)
        self._num_seen += num_new
        self._cache = getattr(output, cache_name, None)
        if self._cache is None:
            raise NotSupportedError(
                f"base model {self._base_model.name!r} keeps nothing of a token for the next one"
            )
        logits: torch.Tensor = output.logits
        return logits[:, -num_rows:]


class Seq2SeqRowForward(RowForward):
    """An encoder-decoder model: the encoder once, then the decoder token by token."""

    def __init__(self, base_model: BaseModel) -> None:
        self._base_model = base_model
        self._model: PreTrainedModel = base_model.model
        self._start = _row_of([decoder_start_token_id(base_model)], base_model)
        self._cache: Any = None
        self._encoded: Any = None
        self._encoder_mask: torch.Tensor | None = None

    @property
    def cache(self) -> Any:
        """What the model keeps of the tokens so far, in its own form; None before any."""
        return self._cache

    def prefill(self, prompt: Prompt, *, wants_prompt_logits: bool) -> torch.Tensor:
        """Run the encoder and the decoder's start; prompt tokens of an encoder have no logits."""
        inputs = prepare_inputs(
            self._base_model,
            prompt.adapter,
            _row_of(prompt.token_ids, self._base_model),
            decoder_input_ids=self._start,
        )
        self._model = inputs.model
        arguments = inputs.as_kwargs()
        self._cache = arguments.pop("past_key_values", None)
        self._encoder_mask = arguments.pop("attention_mask")
        embeddings = arguments.pop("inputs_embeds")
        encoder = self._model.get_encoder()
        read = {"inputs_embeds": embeddings}
        if _needs_ids(encoder.__class__) and prompt.num_encoder_virtual_tokens == 0:
            read = {"input_ids": _row_of(prompt.token_ids, self._base_model)}
        self._encoded = encoder(**read, attention_mask=self._encoder_mask, return_dict=True)
        return self._forward(**arguments)

    def _select(self, sources: torch.Tensor) -> None:
        rows = sources.to(self._model.device)
        self._cache.batch_select_indices(rows)
        assert self._encoder_mask is not None
        # All texts have the same input.
        self._encoder_mask = self._encoder_mask[:1].expand(len(rows), -1)
        hidden = self._encoded.last_hidden_state
        self._encoded.last_hidden_state = hidden[:1].expand(len(rows), -1, -1)

    def _steps(self, token_ids: Sequence[int]) -> torch.Tensor:
        return self._forward(decoder_input_ids=_row_of(token_ids, self._base_model).T)

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
        return logits[:, -1]


def _row_of(token_ids: Sequence[int], base_model: BaseModel) -> torch.Tensor:
    return torch.tensor([list(token_ids)], dtype=torch.long, device=base_model.device)


@functools.cache
def _needs_ids(encoder_class: type[nn.Module]) -> bool:
    """Whether an encoder must be given tokens, as FSMT's, and not just their embeddings."""
    ids = inspect.signature(encoder_class.forward).parameters.get("input_ids")
    return ids is not None and ids.default is inspect.Parameter.empty


@functools.cache
def _arguments_of(model_class: type[PreTrainedModel]) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)
