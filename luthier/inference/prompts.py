"""What a request puts before the first generated token, checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from luthier.adapters.added_tokens import OwnTokens
from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.errors import InvalidInputError
from luthier.inference.base import ClassificationRequest, Request
from luthier.resources.base_model import BaseModel


@dataclass(frozen=True)
class Prompt:
    """A prompt that fits.

    Args:
        token_ids: Prompt tokens, [T]; a seq2seq base encodes them.
        adapter: The request's, in the base model's dtype and on its device.
        soft_prompt: Its virtual tokens, detached.
        key_values: Its prefix of keys and values, detached, [2·L, K, P, Dh]; None for none.
        own_tokens: Tokens that the adapter has beside the base model's, a copy; None for none.
        room: Tokens that may still be generated before the model's context is full; None if it
            has no limit.
    """

    token_ids: tuple[int, ...]
    adapter: Adapter | None
    soft_prompt: SoftPromptTensors
    room: int | None
    key_values: torch.Tensor | None = None
    own_tokens: OwnTokens | None = None

    @property
    def num_decoder_virtual_tokens(self) -> int:
        """P of the decoder's soft prompt or prefix, 0 without one."""
        num_cached = 0 if self.key_values is None else self.key_values.shape[2]
        return num_cached + _num_virtual(self.soft_prompt.decoder)

    @property
    def num_encoder_virtual_tokens(self) -> int:
        """P of the encoder's soft prompt, 0 without one."""
        return _num_virtual(self.soft_prompt.encoder)


def prepare_prompt(
    base_model: BaseModel, request: Request, *, own_tokens: OwnTokens | None = None
) -> Prompt:
    """Build the prompt of a request and check it against the model.

    A prompt without any token is replaced by the beginning-of-sequence token where the model has
    one, unless virtual tokens stand in for it.

    Args:
        base_model: The frozen base.
        request: Its ids, its adapter.
        own_tokens: Tokens that an adapter adds which stands beside layers, and so before nothing;
            an adapter of the request says its own.

    Returns:
        The prompt, with the room it leaves.

    Raises:
        InvalidInputError: If the prompt is empty, too long (naming both lengths), or holds an id
            that the vocabulary lacks; if the adapter's rows are too wide or too narrow.
    """
    adapter = request.adapter
    if adapter is not None:
        adapter = adapter.to(device=base_model.device, dtype=base_model.dtype)
        own_tokens = adapter.own_tokens()
    if own_tokens is not None:
        own_tokens = own_tokens.kept().to(device=base_model.device, dtype=base_model.dtype)
    soft_prompt, key_values = _detached_soft_prompt(adapter), _detached_key_values(adapter)
    num_cached = 0 if key_values is None else key_values.shape[2]
    for part in (soft_prompt.encoder, soft_prompt.decoder):
        _check_width(base_model, part)
    is_seq2seq = base_model.kind == "seq2seq"
    leading = soft_prompt.encoder if is_seq2seq else soft_prompt.decoder
    token_ids = _or_beginning(base_model, request.input_ids, num_virtual=_num_virtual(leading))
    _check_ids(base_model, token_ids, own_tokens)
    prompt = Prompt(token_ids, adapter, soft_prompt, None, key_values, own_tokens)
    max_positions = base_model.max_decoder_positions
    num_virtual = _num_virtual(leading)
    if is_seq2seq and base_model.max_encoder_positions is not None:
        num_encoded = len(token_ids) + num_virtual
        _check_length(num_encoded - 1, request, num_virtual, base_model.max_encoder_positions)
    if max_positions is None:
        return prompt
    if is_seq2seq:
        num_used = 1 + _num_virtual(soft_prompt.decoder) + num_cached
    else:
        num_virtual += num_cached
        num_used = len(token_ids) + num_virtual
    _check_length(num_used, request, num_virtual, max_positions)
    return replace(prompt, room=max_positions - num_used)


def _num_virtual(soft_prompt: torch.Tensor | None) -> int:
    return 0 if soft_prompt is None else len(soft_prompt)


def _detached_soft_prompt(adapter: Adapter | None) -> SoftPromptTensors:
    if adapter is None:
        return SoftPromptTensors()
    with torch.no_grad():
        tensors = adapter.soft_prompt()
    return SoftPromptTensors(
        decoder=None if tensors.decoder is None else tensors.decoder.detach(),
        encoder=None if tensors.encoder is None else tensors.encoder.detach(),
    )


def _detached_key_values(adapter: Adapter | None) -> torch.Tensor | None:
    if adapter is None:
        return None
    with torch.no_grad():
        key_values = adapter.prefix_key_values()
    return None if key_values is None else key_values.detach()


def _check_width(base_model: BaseModel, soft_prompt: torch.Tensor | None) -> None:
    if soft_prompt is not None and soft_prompt.shape[1:] != (base_model.hidden_size,):
        raise InvalidInputError(
            f"the adapter's soft prompt has shape {tuple(soft_prompt.shape)}, base model "
            f"{base_model.name!r} takes rows of {base_model.hidden_size} numbers"
        )


def _or_beginning(
    base_model: BaseModel, input_ids: tuple[int, ...], *, num_virtual: int
) -> tuple[int, ...]:
    if input_ids or num_virtual:
        return input_ids
    bos_token_id = base_model.tokenizer.bos_token_id
    if bos_token_id is None:
        raise InvalidInputError(
            f"the prompt is empty: it has 0 tokens, and base model {base_model.name!r} has no "
            "beginning-of-sequence token to start from"
        )
    return (bos_token_id,)


def _check_ids(
    base_model: BaseModel, token_ids: tuple[int, ...], own_tokens: OwnTokens | None
) -> None:
    own: Collection[int] = () if own_tokens is None else own_tokens.place_of
    for position, token_id in enumerate(token_ids):
        if not 0 <= token_id < base_model.vocab_size and token_id not in own:
            raise InvalidInputError(
                f"'input_ids[{position}]' must be in 0..{base_model.vocab_size - 1}, got {token_id}"
            )


def _check_length(num_used: int, request: Request, num_virtual: int, max_positions: int) -> None:
    if num_used < max_positions:
        return
    virtual = f" and {num_virtual} virtual tokens" if num_virtual else ""
    if isinstance(request, ClassificationRequest):
        if num_used == max_positions:
            return
        raise InvalidInputError(
            f"the text has {len(request.input_ids)} tokens{virtual}; the model's context holds "
            f"{max_positions}"
        )
    raise InvalidInputError(
        f"the prompt has {len(request.input_ids)} tokens{virtual}, which leaves no room to "
        f"generate in the model's context of {max_positions} tokens"
    )
