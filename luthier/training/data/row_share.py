"""What one process takes of a training's rows, as batches for the model."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.data.bucketing import (
    Batch,
    Window,
    deal_window,
    plan_epoch,
    plan_evaluation,
)
from luthier.training.data.collation import TokenBatch, collate, idle_batch
from luthier.training.data.examples import TrainingData
from luthier.training.processes.parallel import ALONE, ProcessGroup


class RowShare:
    """The rows of this process, in the order and the sizes that the options ask for.

    Args:
        base_model: What the batches are for.
        options: Sizes, order and seed.
        group: The processes that train together.
    """

    def __init__(
        self, base_model: BaseModel, options: TrainingOptions, *, group: ProcessGroup = ALONE
    ) -> None:
        self._base_model = base_model
        self._options = options
        self._group = group

    def windows(self, lengths: Sequence[int], *, epoch: int) -> list[Window]:
        """This process's share of each update of one pass.

        Args:
            lengths: Tokens per row, [N].
            epoch: Number of the pass, from 0.

        Returns:
            As many windows, of as many batches, in every process; some batches may be empty.
        """
        options = self._options
        windows = plan_epoch(
            lengths,
            batch_size=options.batch_size,
            accumulate_steps=options.accumulate_steps,
            seed=options.seed,
            epoch=epoch,
            group_by_length=options.group_by_length,
        )
        return [
            deal_window(
                window,
                lengths,
                batch_size=options.batch_size,
                process=self._group.process,
                num_processes=self._group.num_processes,
            )
            for window in windows
        ]

    def evaluation_batches(self, lengths: Sequence[int]) -> list[Batch]:
        """This process's share of rows that are evaluated.

        Args:
            lengths: Tokens per row, [N].

        Returns:
            As many batches in every process; the last may be empty.
        """
        batches = plan_evaluation(lengths, batch_size=self._options.batch_size)
        own = batches[self._group.process :: self._group.num_processes]
        return own + [[]] * (-(-len(batches) // self._group.num_processes) - len(own))

    def batch(self, rows: Sequence[int], data: TrainingData, *, epoch: int) -> TokenBatch | None:
        """The batch of some rows.

        Args:
            rows: Indices; may be none.
            data: They are of.
            epoch: What is drawn anew in each pass is that of this one.

        Returns:
            None for no rows. Where the others need this process's share of the weights, one without
            rows or labels then.
        """
        if rows:
            return batch_of(rows, data, self._base_model, epoch=epoch)
        if not self._options.use_fsdp:
            return None
        return idle_batch(batch_of([0], data, self._base_model, epoch=epoch))


def batch_of(
    rows: Sequence[int], data: TrainingData, base_model: BaseModel, *, epoch: int
) -> TokenBatch:
    """Some rows as one pass of the model takes them.

    Args:
        rows: Indices, at least one.
        data: They are of.
        base_model: What the batch is for.
        epoch: What is drawn anew in each pass is that of this one.

    Returns:
        The batch, on the base model's device.
    """
    return collate(
        data.batch(rows, epoch=epoch),
        pad_token_id=base_model.pad_token_id,
        is_seq2seq=base_model.kind == "seq2seq",
        device=base_model.device,
    )
