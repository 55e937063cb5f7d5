"""What a model makes of held-out rows: its losses, its choices and its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from luthier.errors import TrainingFailedError
from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import IGNORED_LABEL, Example, TrainingData
from luthier.training.metrics.base import ScoredRow
from luthier.training.networks.network import TrainingNetwork

#: From what the model reads, as token ids, to what it writes now; as many texts as rows, in order.
Generate = Callable[[Sequence[Sequence[int]]], Sequence[str]]


def score_rows(network: TrainingNetwork, batch: TokenBatch) -> list[ScoredRow]:
    """The losses of a batch, row by row; texts are empty.

    Args:
        network: While it is ``evaluating``.
        batch: Rows.

    Returns:
        One entry per row that has a label, in order.
    """
    losses, choices = network.token_scores(batch)
    if not batch.rows:  # An idle batch only lent its process's share of the weights.
        return []
    is_label = batch.labels != IGNORED_LABEL
    counts = is_label.sum(dim=1).tolist()
    is_correct = (choices == batch.labels[is_label]).cpu()
    found, start = [], 0
    losses, choices = losses.double().cpu(), choices.cpu()
    for row, count in zip(batch.rows, counts, strict=True):
        part = slice(start, start + count)
        start += count
        if count:
            scored = ScoredRow(
                row=row,
                loss_sum=float(losses[part].sum()),
                num_label_tokens=count,
                num_correct_tokens=int(is_correct[part].sum()),
                input_text="",
                reference="",
                choice=int(choices[start - 1]),
            )
            found.append(scored)
    return found


def with_texts(
    rows: Sequence[ScoredRow],
    data: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_seq2seq: bool,
    generate: Generate | None,
) -> tuple[ScoredRow, ...]:
    """The same rows with what the model reads, should write and writes.

    Args:
        rows: Scored.
        data: They are of.
        tokenizer: Of the base model.
        is_seq2seq: Whether labels are a sequence of their own.
        generate: Writes; None if no metric asks for text.

    Returns:
        In the order of the records.

    Raises:
        TrainingFailedError: If ``generate`` gives another number of texts.
    """
    by_row = {example.row: example for example in data.examples}
    ordered = sorted(rows, key=lambda scored: scored.row)
    if data.class_labels:
        return tuple(_with_classes(each, by_row[each.row], data, tokenizer) for each in ordered)
    parts = [split_example(by_row[scored.row], is_seq2seq=is_seq2seq) for scored in ordered]
    texts = _generated([source for source, _ in parts], generate)
    return tuple(
        replace(
            scored,
            input_text=tokenizer.decode(source, skip_special_tokens=True),
            reference=tokenizer.decode(target, skip_special_tokens=True),
            generated=text,
        )
        for scored, (source, target), text in zip(ordered, parts, texts, strict=True)
    )


def split_example(example: Example, *, is_seq2seq: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the model reads and what it should write then.

    Args:
        example: A row. Of a conversation with several answers, the last one is to be written.
        is_seq2seq: Whether labels are a sequence of their own.

    Returns:
        Tokens before the last run of labels, none for plain text, and that run.
    """
    if is_seq2seq:
        return example.input_ids, tuple(each for each in example.labels if each != IGNORED_LABEL)
    end = len(example.labels)
    while end and example.labels[end - 1] == IGNORED_LABEL:
        end -= 1
    start = end
    while start and example.labels[start - 1] != IGNORED_LABEL:
        start -= 1
    return example.input_ids[:start], example.labels[start:end]


def _with_classes(
    scored: ScoredRow, example: Example, data: TrainingData, tokenizer: PreTrainedTokenizerBase
) -> ScoredRow:
    source, (label,) = split_example(example, is_seq2seq=False)
    assert scored.choice is not None
    return replace(
        scored,
        input_text=tokenizer.decode(source, skip_special_tokens=True),
        reference=data.class_labels[label],
        generated=data.class_labels[scored.choice],
    )


def _generated(sources: Sequence[Sequence[int]], generate: Generate | None) -> Sequence[str | None]:
    """A text per source; None where there is nothing to go on from."""
    if generate is None:
        return [None] * len(sources)
    asked = [source for source in sources if source]
    texts = generate(asked)
    if len(texts) != len(asked):
        raise TrainingFailedError(f"{len(texts)} texts were generated for {len(asked)} rows")
    rest = iter(texts)
    return [next(rest) if source else None for source in sources]
