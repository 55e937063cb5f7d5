"""What every way from a record to an example needs to know of the base model."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from luthier.errors import NotSupportedError
from luthier.training.data.encoding.prompt_encoding import PromptEncoder


@dataclass(frozen=True)
class RowTokenizer:
    """Turns source and target into an ``Example``.

    Args:
        tokenizer: The base model's own; its settings are not touched.
        is_seq2seq: Whether source and target are two sequences.
        eos_token_id: Ends every target.
        max_source_length: Tokens kept of a source, its special tokens included.
        max_target_length: Tokens kept of a target, the end-of-sequence token not counted.
        has_virtual_tokens: Whether something stands before a causal model's first token; if not,
            that token cannot be predicted and is not learned.
        max_row_length: Most tokens of one sequence that the base model can take, or None.
        end_token_ids: Others at which generation ends; a chat template may end answers with them.
        class_labels: Names of the classes that are learned instead of text; else none.
        unwritable_ids: Tokens that the model reads and can never write, so that they are not
            learned as labels: those that an adapter adds to the vocabulary.
    """

    tokenizer: PreTrainedTokenizerBase
    is_seq2seq: bool
    eos_token_id: int
    max_source_length: int
    max_target_length: int
    has_virtual_tokens: bool = False
    max_row_length: int | None = None
    end_token_ids: tuple[int, ...] = ()
    class_labels: tuple[str, ...] = ()
    unwritable_ids: tuple[int, ...] = ()

    @functools.cached_property
    def encoder(self) -> PromptEncoder:
        """Reads texts as serving does."""
        return PromptEncoder(self.tokenizer)

    @functools.cached_property
    def end_texts(self) -> tuple[str, ...]:
        """Spellings of the tokens that end an answer, ``eos_token_id`` first."""
        return end_texts_of(self.tokenizer, self.eos_token_id, self.end_token_ids)


def end_texts_of(
    tokenizer: PreTrainedTokenizerBase, eos_token_id: int, end_token_ids: tuple[int, ...]
) -> tuple[str, ...]:
    """Spellings of the tokens that end an answer.

    Args:
        tokenizer: The base model's.
        eos_token_id: Comes first.
        end_token_ids: Others at which generation ends.

    Returns:
        Each once.
    """
    ids = dict.fromkeys((eos_token_id, *end_token_ids))
    return tuple(str(tokenizer.convert_ids_to_tokens(token_id)) for token_id in ids)


def eos_token_id_of(
    tokenizer: PreTrainedTokenizerBase, eos_token_ids: tuple[int, ...], *, name: str
) -> int:
    """The token that ends a target: the tokenizer's own, if generation stops at it.

    Args:
        tokenizer: The base model's.
        eos_token_ids: Tokens at which generation ends; may be empty.
        name: The base model's name, for the message.

    Returns:
        A token id.

    Raises:
        NotSupportedError: If neither knows an end-of-sequence token.
    """
    own = tokenizer.eos_token_id
    if own is not None and (own in eos_token_ids or not eos_token_ids):
        return int(own)
    if eos_token_ids:
        return eos_token_ids[0]
    raise NotSupportedError(f"base model {name!r} has no end-of-sequence token to learn")
