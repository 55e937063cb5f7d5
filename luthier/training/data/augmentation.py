"""Changes of the training rows that are drawn anew each time a row is learned from.

Everything is a function of seed, epoch and row: a resumed training draws what the first one would
have drawn, and no other generator is touched. Held-out rows are never changed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import alog
from transformers import PreTrainedTokenizerBase

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import TrainingDataError
from luthier.training.data.encoding.conversation_encoding import ConversationEncoder
from luthier.training.data.examples import IGNORED_LABEL, Example

log = alog.use_channel(__name__)

_Turns = list[tuple[ChatMessage, ...]]


@dataclass(frozen=True)
class Augmentation:
    """What happens to the rows of a batch before they are learned from.

    Args:
        options: Probabilities, and the quantile that batches are cut to.
        seed: Of the training.
        mask_token_id: Stands for a hidden token.
        is_seq2seq: Whether labels are a sequence of their own.
        conversations: Row number -> record, where turns are to be skipped or added; else empty.
        encoder: Encodes changed conversations; None where there are none.
    """

    options: DatasetOptions
    seed: int
    mask_token_id: int
    is_seq2seq: bool
    conversations: Mapping[int, ChatTrainRecord]
    encoder: ConversationEncoder | None = None

    def __call__(self, examples: Mapping[int, Example], *, epoch: int) -> list[Example]:
        """The examples of one batch as they are learned from this time.

        Args:
            examples: Index in the data -> example.
            epoch: Number of the pass over the data, from 0.

        Returns:
            As many examples, in order.
        """
        changed = [self._changed(index, example, epoch) for index, example in examples.items()]
        kept = cut_to_quantile(changed, self.options.padding_quantile, is_seq2seq=self.is_seq2seq)
        num_cut = sum(map(_num_tokens, changed)) - sum(map(_num_tokens, kept))
        if num_cut:
            rows = [
                before.row
                for before, after in zip(changed, kept, strict=True)
                if _num_tokens(before) > _num_tokens(after)
            ]
            log.debug("padding_quantile cut %d tokens of rows %s in epoch %d", num_cut, rows, epoch)
        return kept

    def _changed(self, index: int, example: Example, epoch: int) -> Example:
        generator = random.Random(f"augmentation, seed {self.seed}, epoch {epoch}, row {index}")
        example = self._with_other_parents(example, generator)
        if self.options.token_mask_probability:
            return mask_tokens(
                example,
                self.options.token_mask_probability,
                generator,
                mask_token_id=self.mask_token_id,
                is_seq2seq=self.is_seq2seq,
            )
        return example

    def _with_other_parents(self, example: Example, generator: random.Random) -> Example:
        record = self.conversations.get(example.row)
        if record is None or self.encoder is None:
            return example
        changed = self._other_parents(record, generator)
        if changed == record:
            return example
        try:
            return self.encoder.encode(example.row, changed, f"row {example.row}").example
        except TrainingDataError as error:  # With another parent it may be too long.
            log.debug("row %d is learned as it is: %s", example.row, error)
            return example

    def _other_parents(self, record: ChatTrainRecord, generator: random.Random) -> ChatTrainRecord:
        head, turns = split_turns(record)
        *parents, last = turns
        skip = self.options.skip_parent_probability
        parents = [turn for turn in parents if not skip or generator.random() >= skip]
        if generator.random() < self.options.random_parent_probability:
            rows = list(self.conversations)
            other = self.conversations[rows[generator.randrange(len(rows))]]
            parents = [split_turns(other)[1][-1], *parents[1:]]
        messages = (*head, *(message for turn in (*parents, last) for message in turn))
        return replace(record, messages=messages)


def split_turns(record: ChatTrainRecord) -> tuple[tuple[ChatMessage, ...], _Turns]:
    """A conversation as system texts at its head, and turns that each end with an answer.

    Args:
        record: Ends with an answer.

    Returns:
        The head, and at least one turn.
    """
    start = 0
    while record.messages[start].role in ("system", "developer"):
        start += 1
    turns: _Turns = []
    begin = start
    for index in range(start, len(record.messages)):
        if record.messages[index].role == "assistant":
            turns.append(record.messages[begin : index + 1])
            begin = index + 1
    return record.messages[:start], turns


def mask_tokens(
    example: Example,
    probability: float,
    generator: random.Random,
    *,
    mask_token_id: int,
    is_seq2seq: bool,
) -> Example:
    """Hide tokens that a model reads; where it would learn to write them, it does not.

    A causal row keeps at least its last label.

    Args:
        example: Stays as it is.
        probability: Of each token.
        generator: Advanced by one draw per token.
        mask_token_id: Stands for a hidden token.
        is_seq2seq: Whether labels are a sequence of their own, which is left alone.

    Returns:
        The changed example.
    """
    hidden = [generator.random() < probability for _ in example.input_ids]
    last = max(
        (index for index, label in enumerate(example.labels) if label != IGNORED_LABEL), default=-1
    )
    if not is_seq2seq and last >= 0:
        hidden[last] = False
    ids = tuple(
        mask_token_id if is_hidden else token
        for token, is_hidden in zip(example.input_ids, hidden, strict=True)
    )
    if is_seq2seq:
        return replace(example, input_ids=ids)
    labels = tuple(
        IGNORED_LABEL if is_hidden else label
        for label, is_hidden in zip(example.labels, hidden, strict=True)
    )
    return replace(example, input_ids=ids, labels=labels)


def cut_to_quantile(
    examples: Sequence[Example], quantile: float, *, is_seq2seq: bool
) -> list[Example]:
    """Cut the longest rows of a batch down to a quantile of its lengths.

    A causal row loses its start, and keeps at least one label; a seq2seq row loses the start of
    what is read and the end of what is written.

    Args:
        examples: Of one batch.
        quantile: 1 cuts nothing.
        is_seq2seq: Whether labels are a sequence of their own.

    Returns:
        As many examples, in order.

    Example:
        >>> rows = [Example(1, (5,) * n, (5,) * n) for n in (28, 38, 68, 128)]
        >>> [len(row.input_ids) for row in cut_to_quantile(rows, 0.75, is_seq2seq=False)]
        [28, 38, 68, 83]
    """
    if quantile >= 1 or len(examples) < 2:
        return list(examples)
    input_length = _quantile([len(example.input_ids) for example in examples], quantile)
    if not is_seq2seq:
        return [_cut_start(example, input_length) for example in examples]
    label_length = _quantile([len(example.labels) for example in examples], quantile)
    return [
        replace(
            example,
            input_ids=example.input_ids[-input_length:],
            labels=example.labels[:label_length],
        )
        for example in examples
    ]


def _cut_start(example: Example, length: int) -> Example:
    labels = example.labels[-length:]
    if all(label == IGNORED_LABEL for label in labels):
        return example
    return replace(example, input_ids=example.input_ids[-length:], labels=labels)


def _quantile(lengths: Sequence[int], quantile: float) -> int:
    """Interpolated between neighbours and rounded up, at least 1."""
    ordered = sorted(lengths)
    position = quantile * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    value = ordered[below] + (position - below) * (ordered[above] - ordered[below])
    return max(1, math.ceil(value - 1e-9))


def _num_tokens(example: Example) -> int:
    return len(example.input_ids) + len(example.labels)


def mask_token_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands for a hidden token: unknown, else mask, else padding, else the last token.

    Args:
        tokenizer: The base model's.

    Returns:
        A token id.
    """
    for token_id in (tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id):
        if token_id is not None:
            return int(token_id)
    return len(tokenizer) - 1


def changes_rows(options: DatasetOptions) -> bool:
    """Whether rows are changed at all before they are learned from."""
    return bool(
        options.token_mask_probability
        or options.skip_parent_probability
        or options.random_parent_probability
        or options.padding_quantile < 1
    )
