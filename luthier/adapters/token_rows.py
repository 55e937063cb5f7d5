"""Learned embeddings of some tokens of the vocabulary, beside those of all others.

What PEFT calls trainable tokens: rows of the input embeddings, and of an output layer that is tied
to them, are replaced by rows of the adapter's own; the base's weight stays as it is. P is the
number of such tokens, D the hidden size, V the vocabulary.

Tokens that the adapter adds to the vocabulary are rows beyond the base's, or unused ones of it.
They are looked up and never written: the output layer stays the base's, logits are [.., V].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.added_tokens import (
    NO_TOKENS,
    AddedTokens,
    OwnTokens,
    require_plain_embeddings,
)
from luthier.errors import InvalidInputError, NotSupportedError

#: PEFT's name of the rows, after the path of the embeddings.
ROWS_NAME = "token_adapter.trainable_tokens_delta"


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The rows of one adapter.

    Args:
        path: Of the input embeddings.
        tied_paths: Of other layers around the same weight.
        indices: Ids of the tokens.
        rows: What stands in their place, [P, D].
        texts: Of tokens that the adapter adds to the vocabulary; none if they are the base's.
    """

    path: str
    tied_paths: tuple[str, ...]
    indices: tuple[int, ...]
    rows: nn.Parameter
    texts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the rows, among an adapter's parameters."""
        return f"{self.path}.{ROWS_NAME}"

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all layers that have the rows."""
        return (self.path, *self.tied_paths)

    @property
    def added_ids(self) -> Mapping[str, int]:
        """Text to id of the tokens that the adapter adds; empty if they are the base's."""
        return dict(zip(self.texts, self.indices, strict=True)) if self.texts else NO_TOKENS

    def own_tokens(self) -> OwnTokens | None:
        """The tokens that the adapter adds, with their embeddings; None if it adds none."""
        return OwnTokens(self.added_ids, self.rows) if self.texts else None

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> TokenRows:
        """The same around another tensor."""
        return replace(self, rows=nn.Parameter(move(self.rows)))

    def install(self, tree: PreTrainedModel) -> None:
        """Put the rows into a network.

        Args:
            tree: Changed in place; an ``own_module_tree``.
        """
        for path in self.paths:
            tree.set_submodule(path, TokenRowsLayer(tree.get_submodule(path), self))

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """A copy of the embeddings, [V, D], with the rows in it."""
        places = torch.tensor(self.indices, device=weight.device)
        return weight.index_copy(0, places, self.rows.detach().to(weight))


class TokenRowsLayer(nn.Module):
    """Embeddings, or an output layer tied to them, with some rows replaced.

    Args:
        base: ``nn.Embedding`` or ``nn.Linear``; kept, shared, not changed.
        token_rows: The rows.

    Shape:
        forward: ids [..] -> [.., D], or hidden [.., D] -> logits [.., V]; dtype of ``base``.
    """

    places: torch.Tensor
    place_of: torch.Tensor

    def __init__(self, base: nn.Module, token_rows: TokenRows) -> None:
        super().__init__()
        self.base = base
        self.rows = token_rows.rows
        weight: torch.Tensor = base.weight  # type: ignore[assignment]
        places = torch.tensor(token_rows.indices, device=weight.device)
        num_tokens = max(weight.shape[0], *(index + 1 for index in token_rows.indices))
        self._reaches_beyond = num_tokens > weight.shape[0]
        place_of = torch.full((num_tokens,), -1, device=weight.device)
        place_of[places] = torch.arange(len(places), device=weight.device)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("place_of", place_of, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight; some models look at its dtype and device."""
        weight: torch.Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's output, with what these rows give in its place."""
        if not isinstance(self.base, nn.Linear):
            return self._looked_up(x)
        output: torch.Tensor = self.base(x)
        low = nn.functional.linear(x.to(self.rows.dtype), self.rows)
        if self.base.bias is not None:
            low = low + self.base.bias[self.places]
        return output.index_copy(-1, self.places, low.to(output.dtype))

    def _looked_up(self, ids: torch.Tensor) -> torch.Tensor:
        place = self.place_of[ids]
        known = ids.masked_fill(place >= 0, 0) if self._reaches_beyond else ids
        output: torch.Tensor = self.base(known)
        own = self.rows[place.clamp(min=0)]
        # Some models scale what they look up.
        scale = getattr(self.base, "embed_scale", None)
        own = own if scale is None else own * scale
        return torch.where((place >= 0)[..., None], own.to(output.dtype), output)


def find_token_rows(
    model: PreTrainedModel, indices: Sequence[int], *, dtype: torch.dtype
) -> TokenRows:
    """Rows that begin as the base model's.

    Args:
        model: The base model's network; not changed.
        indices: Ids of the tokens, each once.
        dtype: Of the rows.

    Returns:
        The rows.

    Raises:
        InvalidInputError: If the vocabulary does not have a token.
        NotSupportedError: If the model has an encoder, or no plain embeddings.
    """
    if model.config.is_encoder_decoder:
        raise NotSupportedError(
            "'trainable_token_indices' is for causal models: the stacks of a sequence-to-sequence "
            "model have embeddings of their own, of which PEFT's format names one"
        )
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        raise NotSupportedError(
            f"'trainable_token_indices' needs plain embeddings, this model's are a "
            f"{type(embeddings).__name__}"
        )
    num_tokens = embeddings.weight.shape[0]
    for index in indices:
        if index >= num_tokens:
            raise InvalidInputError(
                f"'trainable_token_indices': {index} is no token of the base model, whose ids go "
                f"up to {num_tokens - 1}"
            )
    paths = [
        path
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Embedding | nn.Linear) and layer.weight is embeddings.weight
    ]
    path = next(name for name, layer in model.named_modules() if layer is embeddings)
    rows = embeddings.weight.detach()[list(indices)].to(dtype, copy=True)
    tied = tuple(each for each in paths if each != path)
    return TokenRows(path, tied, tuple(indices), nn.Parameter(rows))


def added_token_rows(
    model: PreTrainedModel, added: AddedTokens, *, dtype: torch.dtype
) -> TokenRows:
    """Rows of tokens that an adapter adds to the vocabulary.

    Args:
        model: The base model's network; not changed. The encoder of a sequence-to-sequence model
            reads them, its decoder does not.
        added: The tokens.
        dtype: Of the rows.

    Returns:
        Rows that begin as the mean of what the tokens were before.

    Raises:
        NotSupportedError: If the model has no plain embeddings.
    """
    return _added(model, added.ids, added.starting_rows(_reading_weight(model)).to(dtype))


def blank_token_rows(
    model: PreTrainedModel, ids: Mapping[str, int], *, dtype: torch.dtype
) -> TokenRows:
    """Rows of tokens that a saved adapter adds, before their numbers are read.

    Args:
        model: The base model's network; not changed.
        ids: Text of each token to its id.
        dtype: Of the rows.

    Returns:
        Rows of zeros.

    Raises:
        NotSupportedError: If the model has no plain embeddings.
    """
    weight = _reading_weight(model)
    return _added(model, ids, weight.new_zeros(len(ids), weight.shape[1], dtype=dtype))


def _reading_weight(model: PreTrainedModel) -> torch.Tensor:
    require_plain_embeddings(model)
    weight: torch.Tensor = model.get_input_embeddings().weight
    return weight


def _added(model: PreTrainedModel, ids: Mapping[str, int], rows: torch.Tensor) -> TokenRows:
    """Around the embeddings of the stack that reads the prompt, which PEFT wants named."""
    shared = model.get_input_embeddings()
    reading = model.get_encoder().get_input_embeddings() if _has_encoder(model) else shared
    path_of = {id(layer): name for name, layer in model.named_modules()}
    others = () if reading is shared else (path_of[id(shared)],)
    indices = tuple(ids.values())
    return TokenRows(path_of[id(reading)], others, indices, nn.Parameter(rows), tuple(ids))


def _has_encoder(model: PreTrainedModel) -> bool:
    return bool(model.config.is_encoder_decoder)
