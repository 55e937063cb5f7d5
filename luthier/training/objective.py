"""What an update makes smaller: the mean loss per label token, or per row."""

from __future__ import annotations

import torch

from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import IGNORED_LABEL

SAMPLE_AVERAGE = "sample_average"


def label_weights(batch: TokenBatch, loss_function: str) -> torch.Tensor | None:
    """What each label of a batch counts, row after row.

    Args:
        batch: Rows.
        loss_function: ``token_average`` or ``sample_average``.

    Returns:
        None for 1 each; else 1 / (labels of the row), fp32 [N].
    """
    if loss_function != SAMPLE_AVERAGE:
        return None
    is_label = batch.labels != IGNORED_LABEL
    rows, _ = torch.nonzero(is_label, as_tuple=True)
    return 1.0 / is_label.sum(dim=1)[rows].float()


def num_units(batch: TokenBatch, loss_function: str) -> int:
    """What the weighted losses of a batch are a sum of: label tokens, or rows that have some."""
    if loss_function != SAMPLE_AVERAGE:
        return batch.num_label_tokens
    return int((batch.labels != IGNORED_LABEL).any(dim=1).sum())
