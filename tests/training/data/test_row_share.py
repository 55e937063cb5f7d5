"""Which rows a process takes, and what becomes of them."""

from __future__ import annotations

import dataclasses
from itertools import chain

import pytest

from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.data.examples import Example, TrainingData, TruncationReport
from luthier.training.data.row_share import RowShare, batch_of
from luthier.training.processes.parallel import ProcessGroup

OPTIONS = TrainingOptions(batch_size=2, accumulate_steps=2, seed=3)
DATA = TrainingData(
    [Example(row, (row,) * row, (-100,) * (row - 1) + (row,)) for row in range(1, 8)],
    TruncationReport(),
)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_all_shares_together_are_all_rows(tiny_causal_base: BaseModel, num_processes: int) -> None:
    shares = [
        RowShare(tiny_causal_base, OPTIONS, group=ProcessGroup(process, num_processes))
        for process in range(num_processes)
    ]
    learned = [share.windows(DATA.lengths, epoch=1) for share in shares]
    assert {len(windows) for windows in learned} == {2}
    rows = [row for windows in learned for window in windows for batch in window for row in batch]
    assert sorted(rows) == list(range(7))
    evaluated = [share.evaluation_batches(DATA.lengths) for share in shares]
    assert len({len(batches) for batches in evaluated}) == 1
    flat = chain.from_iterable(chain.from_iterable(evaluated))
    assert sorted(flat) == list(range(7))


def test_rows_become_one_padded_batch(tiny_causal_base: BaseModel) -> None:
    batch = batch_of([2, 0], DATA, tiny_causal_base, epoch=0)
    pad = tiny_causal_base.pad_token_id
    assert batch.rows == (3, 1)
    assert batch.input_ids.tolist() == [[3, 3, 3], [1, pad, pad]]
    assert batch.labels.tolist() == [[-100, -100, 3], [1, -100, -100]]


def test_no_rows_are_no_batch_unless_others_need_this_processs_weights(
    tiny_causal_base: BaseModel,
) -> None:
    assert RowShare(tiny_causal_base, OPTIONS).batch([], DATA, epoch=0) is None
    shared_out = dataclasses.replace(OPTIONS, use_fsdp=True)
    idle = RowShare(tiny_causal_base, shared_out).batch([], DATA, epoch=0)
    assert idle is not None
    assert (idle.rows, idle.num_label_tokens, idle.input_ids.numel()) == ((), 0, 1)


def test_each_pass_draws_its_own_rows(tiny_causal_base: BaseModel) -> None:
    def change(examples: dict[int, Example], *, epoch: int) -> list[Example]:
        return [
            dataclasses.replace(each, input_ids=(epoch,) * len(each.input_ids))
            for each in examples.values()
        ]

    data = dataclasses.replace(DATA, change=change)
    batch = RowShare(tiny_causal_base, OPTIONS).batch([1], data, epoch=5)
    assert batch is not None and batch.input_ids.tolist() == [[5, 5]]
