"""The clock is a fake; adapters are read when the test says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from luthier.adapters.base import Adapter
from luthier.adapters.lora.layers import LoraFactors
from luthier.errors import ArtifactError
from luthier.inference.deltas.pool.adapter_readers import MAX_READERS, AdapterReaders, Reading

WAIT_SECONDS = 60


class Read(SimpleNamespace):
    """What is asked of an adapter that is read, and a gate before it."""

    def __init__(self, label: str) -> None:
        super().__init__(label=label, gate=threading.Event(), error=None)
        down, up = nn.Parameter(torch.ones(1, 2)), nn.Parameter(torch.ones(2, 1))
        self.factors = LoraFactors(down, up, scaling=1.0)

    def loaded(self) -> Read:
        assert self.gate.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return self

    def linear_deltas(self) -> Mapping[str, LoraFactors]:
        return {self.label: self.factors}

    def whole_modules(self) -> Mapping[str, Any]:
        return {}

    def replaced_rows(self) -> None:
        return None


class Room:
    """Readers with a clock, and what was read."""

    def __init__(self, max_seconds: float = 100) -> None:
        self.changed, self.now = threading.Condition(threading.RLock()), 1000.0
        self.readers = AdapterReaders(self.changed, max_seconds)
        self.readers.clock = lambda: self.now
        self.adapters: list[Read] = []

    def begin(self, label: str) -> Read:
        adapter = Read(label)
        self.adapters.append(adapter)
        with self.changed:
            self.readers.begin(label, cast(Adapter, adapter))
        return adapter

    def take(self) -> Reading:
        found: list[Reading] = []

        def has_come() -> bool:
            found.extend(each for each in [self.readers.take()] if each is not None)
            return bool(found)

        with self.changed:
            assert self.changed.wait_for(has_come, WAIT_SECONDS)
        return found[0]

    def close(self) -> bool:
        for adapter in self.adapters:
            adapter.gate.set()
        with self.changed:
            self.readers.close()
        return self.readers.join(time.monotonic() + WAIT_SECONDS)


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room()
    yield made
    made.close()


def test_what_is_read_comes_with_its_key(room: Room) -> None:
    room.begin("a").gate.set()
    reading = room.take()
    assert reading.key == "a"
    assert list(reading.result().deltas) == ["a"]


@pytest.mark.parametrize("error", [ArtifactError("damaged"), SystemExit("killed")])
def test_what_fails_is_raised_where_it_is_taken(room: Room, error: BaseException) -> None:
    adapter = room.begin("a")
    adapter.error = error
    adapter.gate.set()
    with pytest.raises(type(error), match=str(error)):
        room.take().result()
    room.begin("b").gate.set()
    assert room.take().key == "b"


def test_one_is_read_at_a_time_until_it_is_slow(room: Room) -> None:
    readers = room.readers
    assert readers.may_begin
    assert readers.seconds_to_look() is None
    first = room.begin("a")
    assert not readers.may_begin
    assert readers.seconds_to_look() == 1.0
    room.now += 1
    assert readers.may_begin
    assert readers.seconds_to_look() == 99.0
    room.begin("b")
    assert not readers.may_begin
    first.gate.set()
    assert room.take().key == "a"


def test_threads_are_used_again(room: Room) -> None:
    for index in range(20):
        room.begin(f"{index}").gate.set()
        assert room.take().key == f"{index}"
    assert len(room.readers._threads) == 1


def test_what_is_overdue_is_told_once_and_dropped_when_it_comes(room: Room) -> None:
    readers, late = room.readers, room.begin("a")
    room.now += 99
    assert readers.take_overdue() == []
    room.now += 1
    assert [each.key for each in readers.take_overdue()] == ["a"]
    assert readers.take_overdue() == []
    assert readers.overdue("a") is not None
    assert readers.overdue("b") is None
    assert readers.seconds_to_look() is None
    late.gate.set()
    with room.changed:
        assert room.changed.wait_for(lambda: readers.overdue("a") is None, WAIT_SECONDS)
        assert readers.take() is None


def test_no_more_than_so_many_hang(room: Room) -> None:
    readers = room.readers
    for index in range(MAX_READERS):
        assert readers.may_begin
        room.begin(f"{index}")
        room.now += 2
    assert not readers.may_begin
    assert readers.problem() == ""
    room.now += 100
    assert len(readers.take_overdue()) == MAX_READERS
    assert "no adapter can be read: 4 threads have been reading '0', '1', '2', '3'" in (
        readers.problem()
    )
    assert len(readers._threads) == MAX_READERS
    room.adapters[0].gate.set()
    with room.changed:
        assert room.changed.wait_for(lambda: readers.may_begin, WAIT_SECONDS)
    assert readers.problem() == ""


def test_threads_that_hang_are_not_waited_for(room: Room) -> None:
    room.begin("a")
    room.now += 101
    assert room.readers.take_overdue()
    with room.changed:
        room.readers.close()
    assert not room.readers.join(time.monotonic() + 10**6)


def test_all_others_are(room: Room) -> None:
    room.begin("a")
    assert room.close()


def test_without_a_limit_nothing_is_overdue() -> None:
    room = Room(max_seconds=0)
    room.begin("a")
    room.now += 10**9
    assert room.readers.take_overdue() == []
    assert room.readers.seconds_to_look() is None
    assert room.close()
