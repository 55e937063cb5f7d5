"""From train records to token ids with labels.

Source and target are tokenized apart and joined, as caikit-nlp does. What differs on purpose: the
end-of-sequence token is always there and always learned, and no second begin-of-sequence token
gets into the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from caikit.core import DataObjectBase
from transformers import PreTrainedTokenizerBase

from luthier.data_model.records import (
    ClassificationTrainRecord,
    GenerationTrainRecord,
    to_generation_record,
)
from luthier.errors import CancelledError, NotSupportedError, TrainingDataError
from luthier.training.data.examples import (
    IGNORED_LABEL,
    MAX_LISTED_ROWS,
    Example,
    TrainingData,
    TruncationReport,
)
from luthier.training.data.verbalizer import Verbalizer

#: Records that go to the tokenizer at once; also how often a stop is looked for.
_CHUNK_ROWS = 512

TrainRecord: TypeAlias = GenerationTrainRecord | ClassificationTrainRecord


@dataclass(frozen=True)
class TextPair:
    """What one record says: the verbalized source and the target."""

    row: int
    source: str
    target: str


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
    """

    tokenizer: PreTrainedTokenizerBase
    is_seq2seq: bool
    eos_token_id: int
    max_source_length: int
    max_target_length: int
    has_virtual_tokens: bool = False
    max_row_length: int | None = None


def tokenize_records(
    records: Iterable[TrainRecord],
    verbalizer: Verbalizer,
    row_tokenizer: RowTokenizer,
    *,
    name: str = "train",
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingData:
    """Verbalize, tokenize and label every record, in order.

    Args:
        records: Read once.
        verbalizer: Makes the source out of a record.
        row_tokenizer: Makes ids and labels out of source and target.
        name: What messages call the data: ``train`` or ``validation``.
        should_stop: Asked between chunks of records.

    Returns:
        At least one example, and what had to be cut.

    Raises:
        TrainingDataError: If there is no record, or one cannot be learned from; names its row.
        VerbalizerError: If a record lacks a field that the verbalizer names.
        CancelledError: If ``should_stop`` said so.
    """
    cuts = _Cuts()
    examples: list[Example] = []
    pairs = _text_pairs(records, verbalizer, name=name)
    while chunk := list(islice(pairs, _CHUNK_ROWS)):
        if should_stop():
            raise CancelledError("training was cancelled while its data was tokenized")
        examples.extend(_tokenize_chunk(chunk, row_tokenizer, cuts, name=name))
    if not examples:
        raise TrainingDataError(f"{name} data cannot be empty: it holds no record")
    return TrainingData(tuple(examples), cuts.report(num_rows=len(examples)))


def _text_pairs(
    records: Iterable[TrainRecord], verbalizer: Verbalizer, *, name: str
) -> Iterator[TextPair]:
    for row, record in enumerate(records, start=1):
        if not isinstance(record, GenerationTrainRecord | ClassificationTrainRecord):
            raise TrainingDataError(
                f"{name} row {row} is a {type(record).__name__}, not a GenerationTrainRecord or "
                "ClassificationTrainRecord"
            )
        generation_record = to_generation_record(record)
        target = generation_record.output
        if not isinstance(target, str) or not target:
            raise TrainingDataError(
                f"{name} row {row} has no output: no label token is left to learn"
            )
        source = verbalizer.render(_fields_of(generation_record), row=row)
        yield TextPair(row, source, target)


def _fields_of(record: DataObjectBase) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.fields}


def _tokenize_chunk(
    pairs: list[TextPair], row_tokenizer: RowTokenizer, cuts: _Cuts, *, name: str
) -> Iterator[Example]:
    tokenizer = row_tokenizer.tokenizer
    sources = tokenizer(
        [pair.source for pair in pairs], return_special_tokens_mask=True, verbose=False
    )
    # No special tokens: a second begin-of-sequence in the middle would be learned as text.
    targets = tokenizer([pair.target for pair in pairs], add_special_tokens=False, verbose=False)
    for pair, source_ids, special, target_ids in zip(
        pairs,
        sources["input_ids"],
        sources["special_tokens_mask"],
        targets["input_ids"],
        strict=True,
    ):
        source = _cut_source(source_ids, special, row_tokenizer.max_source_length)
        target = target_ids[: row_tokenizer.max_target_length]
        cuts.count_source(pair.row, len(source_ids) - len(source))
        cuts.count_target(pair.row, len(target_ids) - len(target))
        yield _example(pair.row, source, target, row_tokenizer, name=name)


def _example(
    row: int, source: list[int], target: list[int], row_tokenizer: RowTokenizer, *, name: str
) -> Example:
    if not target:
        raise TrainingDataError(
            f"{name} row {row}: its output has no token for this tokenizer, so no label token is "
            "left to learn"
        )
    learned = (*target, row_tokenizer.eos_token_id)
    if row_tokenizer.is_seq2seq:
        longest = max(len(source), len(learned))
        example = Example(row, tuple(source), learned)
    else:
        longest = len(source) + len(learned)
        labels = [IGNORED_LABEL] * len(source) + list(learned)
        if not row_tokenizer.has_virtual_tokens:
            labels[0] = IGNORED_LABEL
        example = Example(row, (*source, *learned), tuple(labels))
    limit = row_tokenizer.max_row_length
    if limit is not None and longest > limit:
        raise TrainingDataError(
            f"{name} row {row} has {longest} tokens, the base model takes at most {limit} "
            "beside the virtual tokens; lower max_source_length or max_target_length"
        )
    return example


def _cut_source(ids: list[int], special_tokens_mask: list[int], max_length: int) -> list[int]:
    """The first ``max_length`` tokens; a special token that the tokenizer adds at the end stays."""
    if len(ids) <= max_length:
        return ids
    num_closing = 0
    while num_closing < max_length and special_tokens_mask[-1 - num_closing]:
        num_closing += 1
    return ids[: max_length - num_closing] + ids[len(ids) - num_closing :]


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


@dataclass
class _Cuts:
    """Counts for a ``TruncationReport``."""

    source: dict[str, int] = field(default_factory=lambda: {"rows": 0, "tokens": 0})
    target: dict[str, int] = field(default_factory=lambda: {"rows": 0, "tokens": 0})
    first_source_rows: list[int] = field(default_factory=list)
    first_target_rows: list[int] = field(default_factory=list)

    def count_source(self, row: int, num_tokens: int) -> None:
        _count(self.source, self.first_source_rows, row, num_tokens)

    def count_target(self, row: int, num_tokens: int) -> None:
        _count(self.target, self.first_target_rows, row, num_tokens)

    def report(self, *, num_rows: int) -> TruncationReport:
        return TruncationReport(
            num_rows=num_rows,
            num_source_rows=self.source["rows"],
            num_source_tokens=self.source["tokens"],
            num_target_rows=self.target["rows"],
            num_target_tokens=self.target["tokens"],
            first_source_rows=tuple(self.first_source_rows),
            first_target_rows=tuple(self.first_target_rows),
        )


def _count(totals: dict[str, int], first_rows: list[int], row: int, num_tokens: int) -> None:
    if num_tokens:
        totals["rows"] += 1
        totals["tokens"] += num_tokens
        if len(first_rows) < MAX_LISTED_ROWS:
            first_rows.append(row)
