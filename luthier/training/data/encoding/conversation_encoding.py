"""From the parts of a conversation to an example: parts are tokenized apart, cut, joined, labelled.

Because no token crosses the border of a part, the loss mask is exact: it covers the tokens of the
answers and of their ends, as if the model had written them after the prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data_model.checks import require_unicode
from luthier.data_model.conversations import (
    ChatTrainRecord,
    checked_chat,
    learn_only_last_answer,
)
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import InvalidInputError, TrainingDataError
from luthier.training.data.encoding.conversation_parts import (
    Part,
    PartKind,
    PartMaker,
    choose_parts,
)
from luthier.training.data.encoding.prompt_encoding import TextPiece
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.examples import IGNORED_LABEL, Example, TokenizedRow


@dataclass(frozen=True)
class ConversationEncoder:
    """Turns conversations into examples.

    Args:
        row_tokenizer: The base model's tokenizer and limits.
        options: Format, loss mask and lengths.
    """

    row_tokenizer: RowTokenizer
    options: DatasetOptions

    @functools.cached_property
    def _make_parts(self) -> PartMaker:
        return choose_parts(
            self.row_tokenizer.tokenizer, self.options, self.row_tokenizer.end_texts
        )

    @functools.cached_property
    def _known_ends(self) -> dict[str, list[int]]:
        return {}

    def encode(self, row: int, record: ChatTrainRecord, place: str) -> TokenizedRow:
        """One example.

        A causal model reads and learns the whole conversation; a seq2seq model reads all but the
        last answer and learns that.

        Args:
            row: Number of the record in its data, counted from 1.
            record: A conversation.
            place: For messages.

        Returns:
            The example, and what was cut.

        Raises:
            TrainingDataError: If the conversation cannot be learned from, or is longer than the
                base model takes.
        """
        if self.options.only_last_answer:
            record = learn_only_last_answer(record)
        _require_text(checked_chat(record, place), place)
        parts = [self._encode_part(part) for part in self._make_parts(record, place)]
        if self.row_tokenizer.is_seq2seq:
            return self._seq2seq_row(row, parts, place)
        return self._causal_row(row, parts, place)

    def _encode_part(self, part: Part) -> _EncodedPart:
        encoder, max_length = self.row_tokenizer.encoder, self._longest_part(part.kind)
        ids = encoder.encode_pieces(part.pieces)
        end_ids = self._end_ids(part.end)
        num_cut = 0
        if max_length is not None:
            room = max(0, max_length - len(end_ids))
            num_cut = max(0, len(ids) - room)
            if num_cut:
                ids = ids[num_cut:] if part.kind == "prompt" else ids[:room]
        learned = part.kind == "answer" and part.is_learned
        return _EncodedPart(part.kind, [*ids, *end_ids], learned, num_cut)

    def _longest_part(self, kind: PartKind) -> int | None:
        """Tokens of a part of this kind; None for any number."""
        options = self.options
        own = options.max_length_answer if kind == "answer" else options.max_length_prompt
        return min((each for each in (options.max_length, own) if each is not None), default=None)

    def _end_ids(self, end: str) -> list[int]:
        """There are few ends and many answers, so each is tokenized once."""
        if end not in self._known_ends:
            piece = TextPiece(end, is_data=False)
            self._known_ends[end] = self.row_tokenizer.encoder.encode_pieces([piece]) if end else []
        return self._known_ends[end]

    def _causal_row(self, row: int, parts: Sequence[_EncodedPart], place: str) -> TokenizedRow:
        ids = [token for part in parts for token in part.ids]
        unwritable = self.row_tokenizer.unwritable_ids
        is_learned = [
            (part.is_learned or not self.options.mask_prompt_labels) and token not in unwritable
            for part in parts
            for token in part.ids
        ]
        source_cut = sum(part.num_cut for part in parts if part.kind != "answer")
        target_cut = sum(part.num_cut for part in parts if part.kind == "answer")
        if self.options.max_length is not None:
            surplus = max(0, len(ids) - self.options.max_length)
            target_cut += sum(is_learned[:surplus])
            source_cut += surplus - sum(is_learned[:surplus])
            ids, is_learned = ids[surplus:], is_learned[surplus:]
        if not self.row_tokenizer.has_virtual_tokens:
            is_learned[0] = False
        if not any(is_learned):
            raise TrainingDataError(f"{place}: no label token is left to learn")
        labels = [
            token if learned else IGNORED_LABEL
            for token, learned in zip(ids, is_learned, strict=True)
        ]
        self._require_room(len(ids), place)
        return TokenizedRow(Example(row, tuple(ids), tuple(labels)), source_cut, target_cut)

    def _seq2seq_row(self, row: int, parts: Sequence[_EncodedPart], place: str) -> TokenizedRow:
        *earlier, answer = parts
        source = [token for part in earlier for token in part.ids]
        source_cut = sum(part.num_cut for part in earlier)
        if self.options.max_length is not None:
            surplus = max(0, len(source) - self.options.max_length)
            source_cut, source = source_cut + surplus, source[surplus:]
        if not answer.is_learned or not answer.ids:
            raise TrainingDataError(
                f"{place}: a seq2seq model learns the last answer alone, which has weight 0"
            )
        self._require_room(max(len(source), len(answer.ids)), place)
        return TokenizedRow(
            Example(row, tuple(source), tuple(answer.ids)), source_cut, answer.num_cut
        )

    def _require_room(self, num_tokens: int, place: str) -> None:
        limit = self.row_tokenizer.max_row_length
        if limit is not None and num_tokens > limit:
            raise TrainingDataError(
                f"{place} has {num_tokens} tokens, the base model takes at most {limit} beside "
                "the virtual tokens; give a 'max_length' to cut what is longer"
            )


@dataclass(frozen=True, slots=True)
class _EncodedPart:
    """A part as tokens, its end included, and how many it has lost."""

    kind: PartKind
    ids: list[int]
    is_learned: bool
    num_cut: int


def _require_text(record: ChatTrainRecord, place: str) -> None:
    for number, message in enumerate(record.messages, start=1):
        try:
            require_unicode("content", message.content)
        except InvalidInputError as error:
            raise TrainingDataError(f"{place} message {number}: {error}") from error
