"""From plain text to examples for continued pretraining: cut into pieces, and nothing is lost."""

from __future__ import annotations

from luthier.data_model.checks import require_unicode
from luthier.data_model.conversations import TextTrainRecord
from luthier.errors import InvalidInputError, NotSupportedError, TrainingDataError
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.examples import IGNORED_LABEL, Example, TokenizedRow

#: Tokens of one example where nobody says.
DEFAULT_PIECE_LENGTH = 512


def encode_plain_text(
    row: int,
    record: TextTrainRecord,
    row_tokenizer: RowTokenizer,
    *,
    max_length: int | None,
    place: str,
) -> list[TokenizedRow]:
    """Examples that joined are the document and its end; every token is learned.

    Without virtual tokens before it a piece's first token cannot be predicted; so that it is
    learned all the same, each piece begins with the last token of the one before it.

    Args:
        row: Number of the record, counted from 1.
        record: A document.
        row_tokenizer: The base model's tokenizer and limits.
        max_length: Tokens of one example; None takes 512 or what the base model can, if less.
        place: For messages.

    Returns:
        At least one row.

    Raises:
        NotSupportedError: For a seq2seq model, which learns pairs.
        TrainingDataError: If there is no token to learn, or the text is no valid Unicode.
        InvalidInputError: If the base model takes less than ``max_length`` tokens.
    """
    if row_tokenizer.is_seq2seq:
        raise NotSupportedError("a seq2seq model learns pairs of prompt and answer, not plain text")
    try:
        text = require_unicode("text", record.text)
    except InvalidInputError as error:
        raise TrainingDataError(f"{place}: {error}") from error
    encoder = row_tokenizer.encoder
    ids = encoder.encode_bare(text)
    if not ids:
        raise TrainingDataError(f"{place}: the text is empty: no label token is left to learn")
    ids = [*encoder.leading, *ids, row_tokenizer.eos_token_id]
    length = _piece_length(max_length, row_tokenizer)
    if row_tokenizer.has_virtual_tokens:
        starts = range(0, len(ids), length)
        pieces = [tuple(ids[start : start + length]) for start in starts]
        return [TokenizedRow(Example(row, piece, piece)) for piece in pieces]
    starts = range(0, len(ids) - 1, length - 1)
    pieces = [tuple(ids[start : start + length]) for start in starts]
    return [TokenizedRow(Example(row, piece, (IGNORED_LABEL, *piece[1:]))) for piece in pieces]


def _piece_length(max_length: int | None, row_tokenizer: RowTokenizer) -> int:
    room = row_tokenizer.max_row_length
    if max_length is None:
        return DEFAULT_PIECE_LENGTH if room is None else min(DEFAULT_PIECE_LENGTH, room)
    if room is not None and max_length > room:
        raise InvalidInputError(
            f"'max_length' is {max_length}, the base model takes at most {room} tokens beside "
            "the virtual tokens"
        )
    return max_length
