"""From texts with a class to examples, for models that tell classes apart instead of writing.

The text is read as it will be when it is served; the class is what its last token predicts::

    input_ids  text  text  text  (filler)          a filler is never looked back at, so whatever
    labels     -100  -100  -100   class            stands there changes nothing; packed rows lack it
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.errors import TrainingDataError, did_you_mean
from luthier.training.data.encoding.pair_encoding import TextPair, cut_source, encode_sources
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.encoding.verbalizer import Verbalizer
from luthier.training.data.examples import IGNORED_LABEL, Example, TokenizedRow

_MAX_SHOWN_LABELS = 10


def encode_classes(
    pairs: Sequence[TextPair], verbalizer: Verbalizer, row_tokenizer: RowTokenizer, *, name: str
) -> list[TokenizedRow]:
    """Tokenize and cut texts, all at once.

    Args:
        pairs: As ``text_pair`` gives them; their targets are names of classes.
        verbalizer: Made their sources.
        row_tokenizer: The base model's tokenizer and limits, and the classes.
        name: What messages call the data.

    Returns:
        A row per pair.

    Raises:
        TrainingDataError: If a label is none of the classes, or a text has no token or too many;
            names the row.
    """
    numbers = {label: number for number, label in enumerate(row_tokenizer.class_labels)}
    rows = []
    for pair, source in zip(pairs, encode_sources(pairs, verbalizer, row_tokenizer), strict=True):
        place = f"{name} row {pair.row}"
        if pair.target not in numbers:
            raise TrainingDataError(f"{place} has label {_unknown(pair.target, list(numbers))}")
        if not source:
            raise TrainingDataError(f"{place}: its text has no token for this tokenizer")
        kept = cut_source(source, row_tokenizer)
        limit = row_tokenizer.max_row_length
        if limit is not None and len(kept) >= limit:
            raise TrainingDataError(
                f"{place} has {len(kept)} tokens, the base model takes at most {limit - 1} of a "
                "text to classify; lower max_source_length"
            )
        filler = kept[-1]
        labels = (IGNORED_LABEL,) * len(kept) + (numbers[pair.target],)
        example = Example(pair.row, (*kept, filler), labels)
        rows.append(TokenizedRow(example, len(source) - len(kept), 0))
    return rows


def _unknown(label: str, known: Sequence[str]) -> str:
    more = len(known) - _MAX_SHOWN_LABELS
    listed = ", ".join(repr(each[:80]) for each in known[:_MAX_SHOWN_LABELS])
    rest = f" and {more} more" if more > 0 else ""
    hint = did_you_mean(label[:80], known)
    return (
        f"{label[:80]!r}, which is none of the {len(known)} classes{hint}; they are {listed}{rest}"
    )
