"""From a user's text to the token ids of a prompt.

What a user writes is text, even where it spells ``<|im_end|>``; what the operator or tuner wrote
into a verbalizer may be a control token. Texts without such spellings get exactly the ids that the
tokenizer gives them by itself.
"""

from __future__ import annotations

import copy
import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from luthier.adapters.added_tokens import NO_TOKENS, grown_tokenizer
from luthier.data_model.checks import require_unicode
from luthier.resources.base_model import BaseModel
from luthier.training.data.encoding.verbalizer import Verbalizer

_PLACEHOLDER = "{{input}}"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model and as people see it.

    Args:
        text: The verbalized text; of a truncated prompt, what its tokens decode to.
        token_ids: Special tokens included, [T].
    """

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A part of a text that is made of a template and data.

    Args:
        text: Any length.
        is_data: True for what a user or a record says: text even where it spells control tokens.
    """

    text: str
    is_data: bool


class PromptEncoder:
    """Encodes prompts for one base model. Thread-safe.

    Args:
        tokenizer: The base model's; its state is never changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._control = _control_tokens(tokenizer)
        self._literal: PreTrainedTokenizerBase | None = None
        self._lock = threading.Lock()
        self._leading, self._trailing = _added_around(tokenizer)

    def encode(self, verbalizer: Verbalizer, text: str, *, max_tokens: int = 0) -> EncodedPrompt:
        """Verbalize and tokenize.

        Args:
            verbalizer: Names no field but ``input``.
            text: The user's.
            max_tokens: Keep the first this many tokens, those that the tokenizer adds included; 0
                keeps all.

        Returns:
            The prompt.

        Raises:
            VerbalizerError: If the verbalizer names another field.
            InvalidInputError: If the text is no valid Unicode.
        """
        prompt = verbalizer.render({"input": require_unicode("text", text)})
        if self.spells_control(text):
            token_ids = self._encode_as_text(verbalizer.template, text)
        else:
            token_ids = list(self._tokenizer(prompt, verbose=False)["input_ids"])
        if max_tokens and len(token_ids) > max_tokens:
            kept = self._truncated(token_ids, max_tokens)
            return EncodedPrompt(self.decode(kept), tuple(kept))
        return EncodedPrompt(prompt, tuple(token_ids))

    def encode_bare(self, text: str) -> list[int]:
        """The tokens of a text that nothing is added to and that holds no control token."""
        encoded: list[int] = self._text_only()(text, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return encoded

    def spells_control(self, text: str) -> bool:
        """Whether a tokenizer left to itself would see a control token in ``text``."""
        return self._control is not None and self._control.search(text) is not None

    @property
    def leading(self) -> tuple[int, ...]:
        """Tokens that the tokenizer adds before every text."""
        return tuple(self._leading)

    @property
    def num_trailing(self) -> int:
        """Tokens that the tokenizer adds after every text."""
        return len(self._trailing)

    def tokens(self, text: str) -> list[tuple[int, int, str]]:
        """The tokens of a bare text: start and end in it, and the vocabulary's piece.

        Tokens that the tokenizer adds have start and end 0; a tokenizer that knows no offsets
        gives all of them so.

        Args:
            text: The user's.

        Returns:
            One entry per token.
        """
        tokenizer = self._text_only() if self.spells_control(text) else self._tokenizer
        encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        token_ids = encoded["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(token_ids)
        offsets = encoded.get("offset_mapping") or [(0, 0)] * len(token_ids)
        return [
            (int(start), int(end), piece)
            for (start, end), piece in zip(offsets, pieces, strict=True)
        ]

    def encode_pieces(self, pieces: Sequence[TextPiece]) -> list[int]:
        """The tokens of pieces of text as one text, and none that a tokenizer adds by itself.

        Args:
            pieces: From a template and from data; only the template's may be control tokens.

        Returns:
            Token ids.
        """
        if any(piece.is_data and self.spells_control(piece.text) for piece in pieces):
            return list(self._encode_pieces_as_text(pieces))
        text = "".join(piece.text for piece in pieces)
        encoded: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return encoded

    def _encode_as_text(self, template: str, text: str) -> list[int]:
        pieces: list[TextPiece] = []
        for index, literal in enumerate(template.split(_PLACEHOLDER)):
            if index:
                pieces.append(TextPiece(text, is_data=True))
            pieces.append(TextPiece(literal, is_data=False))
        return [*self._leading, *self._encode_pieces_as_text(pieces), *self._trailing]

    def _encode_pieces_as_text(self, pieces: Sequence[TextPiece]) -> Iterator[int]:
        for piece, is_control in self._cut_at_control_tokens(pieces):
            if is_control:
                yield self._tokenizer.convert_tokens_to_ids(piece)
            else:
                yield from self._text_only()(piece, add_special_tokens=False, verbose=False)[
                    "input_ids"
                ]

    def _cut_at_control_tokens(self, pieces: Sequence[TextPiece]) -> Iterator[tuple[str, bool]]:
        """The text, cut at the control tokens of the template and at no others."""
        assert self._control is not None
        plain = ""
        for piece in pieces:
            if piece.is_data:
                plain += piece.text
                continue
            end = 0
            for match in self._control.finditer(piece.text):
                plain += piece.text[end : match.start()]
                if plain:
                    yield plain, False
                yield match[0], True
                plain, end = "", match.end()
            plain += piece.text[end:]
        if plain:
            yield plain, False

    def _text_only(self) -> PreTrainedTokenizerBase:
        """A copy that knows no control tokens; a shared one would have to be switched back."""
        with self._lock:
            if self._literal is None:
                literal: Any = copy.deepcopy(self._tokenizer)
                literal.split_special_tokens = True
                if literal.is_fast:
                    literal.backend_tokenizer.encode_special_tokens = True
                self._literal = literal
            return self._literal

    def _truncated(self, token_ids: list[int], max_tokens: int) -> list[int]:
        """As transformers truncates: what the tokenizer adds at the end stays at the end."""
        num_trailing = len(self._trailing)
        if not num_trailing or num_trailing >= max_tokens:
            return token_ids[:max_tokens]
        return token_ids[: max_tokens - num_trailing] + token_ids[-num_trailing:]

    def decode(self, token_ids: list[int]) -> str:
        """The text of tokens, without special ones."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text


class _Encoders:
    """Those of one base model: its own, and those with added tokens for as long as somebody has
    them, because each is a tokenizer of its own and anybody's markers make another."""

    def __init__(self, base_model: BaseModel) -> None:
        self.own = PromptEncoder(base_model.tokenizer)
        self.grown: weakref.WeakValueDictionary[tuple[tuple[str, int], ...], PromptEncoder] = (
            weakref.WeakValueDictionary()
        )


_encoders: weakref.WeakKeyDictionary[BaseModel, _Encoders] = weakref.WeakKeyDictionary()
_encoders_lock = threading.Lock()


def encoder_for(
    base_model: BaseModel, added_tokens: Mapping[str, int] = NO_TOKENS
) -> PromptEncoder:
    """The one encoder of a base model, however many adapters stand on it. Thread-safe.

    Args:
        base_model: Any; it is not kept alive.
        added_tokens: Text and id of tokens that adapters add to its vocabulary; those that add the
            same share an encoder, which is gone with the last of them.

    Returns:
        Its encoder.

    Raises:
        ArtifactError: If the base model's tokenizer would give such a token another id.
    """
    key = tuple(added_tokens.items())
    with _encoders_lock:
        encoders = _encoders.get(base_model)
        if encoders is None:
            encoders = _encoders[base_model] = _Encoders(base_model)
        if not key:
            return encoders.own
        encoder = encoders.grown.get(key)
        if encoder is None:
            tokenizer = grown_tokenizer(base_model.tokenizer, added_tokens)
            encoder = encoders.grown[key] = PromptEncoder(tokenizer)
        return encoder


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    spellings = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings))) if spellings else None


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text."""
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    token_ids, mask = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    if 0 not in mask:
        return token_ids, []
    first = mask.index(0)
    last = len(mask) - mask[::-1].index(0)
    return token_ids[:first], token_ids[last:]
