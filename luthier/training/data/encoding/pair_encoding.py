"""From pairs of source and target to examples.

Source and target are tokenized apart and joined, as caikit-nlp does. What differs on purpose: the
end-of-sequence token is always there and always learned, and no second begin-of-sequence token
gets into the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caikit.core import DataObjectBase

from luthier.data_model.checks import require_unicode
from luthier.data_model.records import (
    ClassificationTrainRecord,
    GenerationTrainRecord,
    to_generation_record,
)
from luthier.errors import InvalidInputError, TrainingDataError
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.encoding.verbalizer import Verbalizer
from luthier.training.data.examples import IGNORED_LABEL, Example, TokenizedRow


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


def encode_pairs(
    pairs: Sequence[TextPair], verbalizer: Verbalizer, row_tokenizer: RowTokenizer, *, name: str
) -> list[TokenizedRow]:
    """Tokenize, cut and label pairs, all at once.

    Args:
        pairs: As ``text_pair`` gives them.
        verbalizer: Made their sources.
        row_tokenizer: The base model's tokenizer and limits.
        name: What messages call the data.

    Returns:
        A row per pair.

    Raises:
        TrainingDataError: If a pair cannot be learned from; names its row.
    """
    sources = encode_sources(pairs, verbalizer, row_tokenizer)
    targets = _encode_targets(pairs, row_tokenizer)
    rows = []
    for pair, source, target in zip(pairs, sources, targets, strict=True):
        kept_source = cut_source(source, row_tokenizer)
        kept_target = target[: row_tokenizer.max_target_length]
        example = _example(pair.row, kept_source, kept_target, row_tokenizer, name=name)
        rows.append(
            TokenizedRow(example, len(source) - len(kept_source), len(target) - len(kept_target))
        )
    return rows


def text_pair(
    row: int,
    record: GenerationTrainRecord | ClassificationTrainRecord,
    verbalizer: Verbalizer,
    *,
    name: str,
) -> TextPair:
    """What a record says, checked and verbalized.

    Args:
        row: Number of the record, counted from 1.
        record: One of the two kinds of pairs.
        verbalizer: Makes the source.
        name: What messages call the data.

    Returns:
        The pair.

    Raises:
        TrainingDataError: If there is no output, or a text is no valid Unicode.
        VerbalizerError: If the record lacks a field that the verbalizer names.
    """
    generation_record = to_generation_record(record)
    target = generation_record.output
    if not isinstance(target, str) or not target:
        raise TrainingDataError(f"{name} row {row} has no output: no label token is left to learn")
    source = verbalizer.render(_fields_of(generation_record), row=row)
    text = str(generation_record.input)
    for field_name, value in (("input", text), ("output", target)):
        try:
            require_unicode(field_name, value)
        except InvalidInputError as error:
            raise TrainingDataError(f"{name} row {row}: {error}") from error
    return TextPair(row, text, source, target)


def _fields_of(record: DataObjectBase) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.fields}


def encode_sources(
    pairs: Sequence[TextPair], verbalizer: Verbalizer, row_tokenizer: RowTokenizer
) -> list[list[int]]:
    """The tokens of every source, all at once but for the few that spell control tokens.

    Args:
        pairs: As ``text_pair`` gives them.
        verbalizer: Made their sources.
        row_tokenizer: The base model's tokenizer.

    Returns:
        As many lists as pairs, nothing cut.
    """
    encoder = row_tokenizer.encoder
    encoded = row_tokenizer.tokenizer([pair.source for pair in pairs], verbose=False)
    sources: list[list[int]] = encoded["input_ids"]
    for index, pair in enumerate(pairs):
        if encoder.spells_control(pair.text):
            sources[index] = list(encoder.encode(verbalizer, pair.text).token_ids)
    return sources


def _encode_targets(pairs: Sequence[TextPair], row_tokenizer: RowTokenizer) -> list[list[int]]:
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


def cut_source(ids: list[int], row_tokenizer: RowTokenizer) -> list[int]:
    """The first tokens that fit; what the tokenizer adds at the end stays at the end.

    Args:
        ids: Of a source.
        row_tokenizer: Says how many fit.

    Returns:
        The tokens that are kept.
    """
    max_length = row_tokenizer.max_source_length
    if len(ids) <= max_length:
        return ids
    num_closing = min(row_tokenizer.encoder.num_trailing, max_length)
    return ids[: max_length - num_closing] + ids[len(ids) - num_closing :]
