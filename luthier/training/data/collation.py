"""From examples to the tensors of one batch, padded on the right to its longest row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.training.data.examples import IGNORED_LABEL, Example


@dataclass(frozen=True)
class TokenBatch:
    """Some rows, ready for the model.

    Args:
        rows: Numbers of the records, counted from 1, [B].
        input_ids: [B, T], right-padded; the encoder's for a seq2seq model.
        attention_mask: [B, T], 1 on tokens and 0 on padding.
        labels: [B, T] for a causal model, [B, U] for a seq2seq one; -100 is not learned.
        num_input_tokens: Tokens that are not padding, labels of a seq2seq model included.
        num_label_tokens: Labels that are not -100.
    """

    rows: tuple[int, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    num_input_tokens: int
    num_label_tokens: int


def collate(
    examples: Sequence[Example], *, pad_token_id: int, is_seq2seq: bool, device: torch.device
) -> TokenBatch:
    """Pad rows to the longest of them.

    Args:
        examples: At least one.
        pad_token_id: Fills ``input_ids``.
        is_seq2seq: Whether labels have a length of their own.
        device: Where the tensors go.

    Returns:
        The batch.
    """
    inputs = [example.input_ids for example in examples]
    labels = [example.labels for example in examples]
    num_input_tokens = sum(map(len, inputs)) + (sum(map(len, labels)) if is_seq2seq else 0)
    return TokenBatch(
        rows=tuple(example.row for example in examples),
        input_ids=_pad(inputs, pad_token_id).to(device),
        attention_mask=_pad([(1,) * len(ids) for ids in inputs], 0).to(device),
        labels=_pad(labels, IGNORED_LABEL).to(device),
        num_input_tokens=num_input_tokens,
        num_label_tokens=sum(example.num_label_tokens for example in examples),
    )


def idle_batch(batch: TokenBatch) -> TokenBatch:
    """A batch to go through the model with and learn nothing from.

    Args:
        batch: Any.

    Returns:
        Its tokens without labels, counted as no rows.
    """
    labels = torch.full_like(batch.labels, IGNORED_LABEL)
    return TokenBatch((), batch.input_ids, batch.attention_mask, labels, 0, 0)


def _pad(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """[B, longest row], at least one column."""
    padded = torch.full((len(rows), max(1, *map(len, rows))), filler, dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded
