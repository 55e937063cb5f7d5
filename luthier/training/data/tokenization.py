"""From train records to token ids with labels.

Source and target are tokenized apart and joined, as caikit-nlp does. What differs on purpose: the
end-of-sequence token is always there and always learned, and no second begin-of-sequence token
gets into the middle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from caikit.core import DataObjectBase
from transformers import PreTrainedTokenizerBase

from luthier.data_model.checks import require_unicode
from luthier.data_model.records import (
    ClassificationTrainRecord,
    GenerationTrainRecord,
    to_generation_record,
)
from luthier.errors import (
    CancelledError,
    InvalidInputError,
    NotSupportedError,
    TrainingDataError,
)
from luthier.training.data.examples import (
    IGNORED_LABEL,
    MAX_LISTED_ROWS,
    Example,
    TrainingData,
    TruncationReport,
)
from luthier.training.data.prompt_encoding import PromptEncoder
from luthier.training.data.verbalizer import Verbalizer

#: Records that go to the tokenizer at once; also how often a stop is looked for.
_CHUNK_ROWS = 512

TrainRecord: TypeAlias = GenerationTrainRecord | ClassificationTrainRecord


@dataclass(frozen=True)
class TextPair:
    """What one record says.

    Args:
        row: Number of the record, counted from 1.
        text: The record's input.
        source: ``text`` in the verbalizer.
        target: The record's output.
    """

    row: int
    text: str
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

    @functools.cached_property
    def encoder(self) -> PromptEncoder:
        """Reads texts as serving does."""
        return PromptEncoder(self.tokenizer)


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
        sources = _encode_sources(chunk, verbalizer, row_tokenizer)
        targets = _encode_targets(chunk, row_tokenizer)
        for pair, source, target in zip(chunk, sources, targets, strict=True):
            kept_source = _cut_source(source, row_tokenizer)
            kept_target = target[: row_tokenizer.max_target_length]
            cuts.count_source(pair.row, len(source) - len(kept_source))
            cuts.count_target(pair.row, len(target) - len(kept_target))
            examples.append(_example(pair.row, kept_source, kept_target, row_tokenizer, name=name))
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
        text = str(generation_record.input)
        for field_name, value in (("input", text), ("output", target)):
            try:
                require_unicode(field_name, value)
            except InvalidInputError as error:
                raise TrainingDataError(f"{name} row {row}: {error}") from error
        yield TextPair(row, text, source, target)


def _fields_of(record: DataObjectBase) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.fields}


def _encode_sources(
    pairs: list[TextPair], verbalizer: Verbalizer, row_tokenizer: RowTokenizer
) -> list[list[int]]:
    """The tokens of every source, all at once but for the few that spell control tokens."""
    encoder = row_tokenizer.encoder
    encoded = row_tokenizer.tokenizer([pair.source for pair in pairs], verbose=False)
    sources: list[list[int]] = encoded["input_ids"]
    for index, pair in enumerate(pairs):
        if encoder.spells_control(pair.text):
            sources[index] = list(encoder.encode(verbalizer, pair.text).token_ids)
    return sources


def _encode_targets(pairs: list[TextPair], row_tokenizer: RowTokenizer) -> list[list[int]]:
    """The tokens of every target and no others: a second begin-of-sequence token in the middle
    would be learned as text."""
    encoder = row_tokenizer.encoder
    encoded = row_tokenizer.tokenizer(
        [pair.target for pair in pairs], add_special_tokens=False, verbose=False
    )
    targets: list[list[int]] = encoded["input_ids"]
    for index, pair in enumerate(pairs):
        if encoder.spells_control(pair.target):
            targets[index] = encoder.encode_bare(pair.target)
    return targets


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


def _cut_source(ids: list[int], row_tokenizer: RowTokenizer) -> list[int]:
    """The first tokens that fit; what the tokenizer adds at the end stays at the end."""
    max_length = row_tokenizer.max_source_length
    if len(ids) <= max_length:
        return ids
    num_closing = min(row_tokenizer.encoder.num_trailing, max_length)
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
