"""Several callbacks as one."""

from __future__ import annotations

import pytest

from luthier.training.callbacks.base import BatchEvent, TrainingCallback
from luthier.training.callbacks.callback_list import CallbackList


class _Noting(TrainingCallback):
    """Writes down what it is told."""

    def __init__(self, name: str, notes: list[str]) -> None:
        for method in vars(TrainingCallback):
            if method.startswith("on_") or method == "close":
                setattr(self, method, lambda *_, method=method: notes.append(f"{name} {method}"))


def test_each_is_told_everything_in_order_and_the_last_is_closed_first() -> None:
    notes: list[str] = []
    both = CallbackList([_Noting("first", notes), _Noting("second", notes)])
    told = [name for name in vars(TrainingCallback) if name.startswith("on_")]
    assert len(told) == 8
    for name in told:
        getattr(both, name)(None)
    assert notes == [f"{each} {name}" for name in told for each in ("first", "second")]
    notes.clear()
    both.close()
    assert notes == ["second close", "first close"]


def test_an_error_of_one_is_everybodys_and_keeps_none_open() -> None:
    class Failing(TrainingCallback):
        def on_batch(self, event: BatchEvent) -> None:
            raise OSError("the disk is full")

        def close(self) -> None:
            raise OSError("the disk is full")

    notes: list[str] = []
    both = CallbackList([_Noting("first", notes), Failing(), _Noting("third", notes)])
    with pytest.raises(OSError, match="full"):
        both.on_batch(BatchEvent(0, 1))
    assert notes == ["first on_batch"]
    with pytest.raises(OSError, match="full"):
        both.close()
    assert notes == ["first on_batch", "third close", "first close"]
