"""What is held out and what is sampled is some of what there is, and the same for a seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data_model.datasets.splitting import hold_out, sample
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import TrainingDataError


@given(st.integers(2, 60), st.floats(0.01, 0.95), st.integers(0, 5))
def test_every_unit_is_learned_or_held_out(num_units: int, share: float, seed: int) -> None:
    options = DatasetOptions(validation_size=share, split_seed=seed)
    learned, held_out = hold_out(range(num_units), options, name="rows")
    assert sorted([*learned, *held_out]) == list(range(num_units))
    assert learned
    assert held_out
    again = hold_out(range(num_units), options, name="rows")
    assert [list(part) for part in again] == [list(learned), list(held_out)]


def test_groups_stay_whole() -> None:
    groups = [[0, 3], [1], [2, 4, 5], [6]]
    learned, held_out = hold_out(groups, DatasetOptions(validation_size=0.5), name="rows")
    assert sorted([*learned, *held_out]) == sorted(groups)
    assert len(held_out) == 2


def test_nothing_is_held_out_unless_a_share_is_asked_for() -> None:
    learned, held_out = hold_out(range(3), DatasetOptions(validation_size=0), name="rows")
    assert (list(learned), list(held_out)) == ([0, 1, 2], [])
    with pytest.raises(TrainingDataError, match="'mine' has 1 rows: none can be held out"):
        hold_out(range(1), DatasetOptions(validation_size=0.5), name="mine")


def test_a_sample_is_of_the_parts_that_are_named() -> None:
    options = DatasetOptions(data_sample=0.25, data_sample_choice=("Train",))
    chosen = sample(range(100), "Train", options)
    assert len(chosen) == 25
    assert list(chosen) == sorted(set(chosen))
    assert sample(range(100), "Validation", options) == range(100)
