"""Where a prompt and the text that continues it meet."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from luthier.modules.text_generation.space_cleaning import SpaceCleaner

#: How tokenizers of the sentencepiece family write the space before a word.
_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"


class TextJoiner:
    """Puts a prompt and the pieces of its continuation together as one decoded text.

    Decoding by itself what follows a prompt, a sentencepiece tokenizer takes its first token for
    the start of a text and drops the space before it: "The capital is" and "Paris".

    Args:
        restores_space: True if the text continues the prompt, as a causal model's does, and the
            tokenizer drops the space.
        cleans_up_spaces: Take spaces out as caikit-nlp did.
    """

    def __init__(self, *, restores_space: bool, cleans_up_spaces: bool) -> None:
        self._cleaner = SpaceCleaner(is_active=cleans_up_spaces)
        self._may_lack_space = restores_space
        self._lacks_space = False

    def prompt(self, text: str) -> str:
        """Take the prompt; call it first, with "" if the prompt is not to be given back.

        Args:
            text: The prompt's.

        Returns:
            What of it no later text can change.
        """
        return self._cleaner.push(text)

    def push(self, text: str, *, first_piece: str) -> str:
        """Take more generated text.

        Args:
            text: Decoded without the prompt.
            first_piece: The vocabulary's piece for the first of its tokens, or "".

        Returns:
            What no later text can change.
        """
        if self._may_lack_space and first_piece:
            self._may_lack_space = False
            self._lacks_space = first_piece.startswith(_WORD_START)
        if self._lacks_space and text:
            self._lacks_space = False
            text = f" {text}"
        return self._cleaner.push(text)

    def flush(self) -> str:
        """Return what was held back; call it once, after the last piece."""
        return self._cleaner.flush()


def drops_first_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether decoding drops the space before the first word.

    Args:
        tokenizer: Any; not changed.

    Returns:
        False for tokenizers that do not mark words with it.
    """
    token_id = tokenizer.convert_tokens_to_ids(_WORD_START)
    if token_id is None or token_id == tokenizer.unk_token_id:
        return False
    return bool(tokenizer.decode([token_id, token_id]) == " ")
