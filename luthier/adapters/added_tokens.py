"""Tokens that a tuning adds to a vocabulary, such as the markers around prompts and answers.

A text that the tokenizer cut into pieces becomes one token. Its embedding starts as the mean of
the pieces', so it means about what they meant before. In a tied or grown output layer the same mean
makes the new token at most as probable as its pieces are on average (the geometric mean is below
the arithmetic one), so the other tokens' probabilities hardly move. It draws no random numbers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError

#: Of an adapter that adds no token.
NO_TOKENS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class AddedTokens:
    """Tokens before anything was learned of them.

    Args:
        ids: Text of each to its id, in the order in which the tokenizer gets them.
        pieces: Text of each to the tokens that stood for it before.
    """

    ids: Mapping[str, int]
    pieces: Mapping[str, tuple[int, ...]]

    def starting_rows(self, weight: torch.Tensor) -> torch.Tensor:
        """What the tokens' rows of an embedding or output layer start as.

        Args:
            weight: Of the layer, [V, D], or its bias, [V]; not changed.

        Returns:
            Means of the pieces' rows, [P, D] or [P], in the precision that they add up in.
        """
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        return torch.stack([wide[list(pieces)].mean(dim=0) for pieces in self.pieces.values()])


@dataclass(frozen=True, eq=False)
class OwnTokens:
    """Tokens that only one adapter knows, as they are served.

    Args:
        ids: Text of each to its id.
        rows: Their embeddings in that order, [P, D].
    """

    ids: Mapping[str, int]
    rows: torch.Tensor

    @functools.cached_property
    def place_of(self) -> Mapping[int, int]:
        """Row of each id."""
        return {token_id: place for place, token_id in enumerate(self.ids.values())}

    @functools.cached_property
    def text_of(self) -> Mapping[int, str]:
        """Text of each id."""
        return {token_id: text for text, token_id in self.ids.items()}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> OwnTokens:
        """The same on ``device`` in ``dtype``, without gradients."""
        rows = self.rows.detach().to(device=device, dtype=dtype)
        return OwnTokens(self.ids, rows)

    def kept(self) -> OwnTokens:
        """A copy that nobody's changes reach."""
        return OwnTokens(dict(self.ids), self.rows.detach().clone())


def added_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> AddedTokens | None:
    """The tokens that texts become.

    Args:
        tokenizer: The base model's; not changed.
        texts: Each shall be one token. Empty ones, and those that are one already, stay as they
            are.

    Returns:
        Texts, ids and pieces; None if there is nothing to add.

    Raises:
        InvalidInputError: If the tokenizer has no tokens for a text.
    """
    vocabulary = tokenizer.get_vocab()
    new = [text for text in dict.fromkeys(texts) if text and text not in vocabulary]
    pieces = {text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in new}
    for text, found in pieces.items():
        if not found:
            raise InvalidInputError(
                f"marker {text[:80]!r} cannot become a token: the tokenizer sees nothing in it"
            )
    if not new:
        return None
    grown = _grown(tokenizer, new)
    return AddedTokens({text: int(grown.convert_tokens_to_ids(text)) for text in new}, pieces)


def grown_tokenizer(
    tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, int]
) -> PreTrainedTokenizerBase:
    """The tokenizer with more tokens.

    They are control tokens: a user's text that spells one stays text.

    Args:
        tokenizer: The base model's; not changed.
        ids: Text of each token to its id.

    Returns:
        A copy; ``tokenizer`` itself if there are no tokens.

    Raises:
        ArtifactError: If the tokenizer gives a token another id: it is not the one that the tokens
            were added to.
    """
    if not ids:
        return tokenizer
    grown = _grown(tokenizer, ids)
    for text, expected in ids.items():
        found = grown.convert_tokens_to_ids(text)
        if found != expected:
            raise ArtifactError(
                f"added token {text[:80]!r} has id {expected}, the base model's tokenizer makes it "
                f"{found}: it is another tokenizer than the one that the tokens were added to"
            )
    return grown


@torch.no_grad()
def grow_embeddings(model: PreTrainedModel, added: AddedTokens) -> None:
    """Give a model rows for more tokens, where it has none in reserve, and let them start.

    Args:
        model: The caller's own; changed in place. Its embeddings are replaced by larger ones.
        added: The tokens.

    Raises:
        NotSupportedError: If the model has no plain embeddings.
    """
    places = list(added.ids.values())
    require_plain_embeddings(model)
    table: torch.Tensor = model.get_input_embeddings().weight
    if max(places) >= table.shape[0]:
        # transformers draws new rows from torch's global numbers; what they start as is set below.
        with torch.random.fork_rng(devices=[table.device] if table.is_cuda else []):
            model.resize_token_embeddings(max(places) + 1, mean_resizing=False)
    done: set[int] = set()
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for tensor in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in done:
                done.add(id(tensor))
                tensor[places] = added.starting_rows(tensor).to(tensor)


def require_plain_embeddings(model: PreTrainedModel) -> None:
    """Refuse a model whose embeddings are no table.

    Args:
        model: Not changed.

    Raises:
        NotSupportedError: Naming what it has instead.
    """
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        raise NotSupportedError(
            f"tokens can be added to plain embeddings, this model's are a "
            f"{type(embeddings).__name__}"
        )


def _grown(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
    return grown
