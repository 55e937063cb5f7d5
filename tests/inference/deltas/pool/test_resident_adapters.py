from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.errors import CapacityError
from luthier.inference.deltas.pool.resident_adapters import Pin, ResidentAdapters


class Room:
    """Adapters within a hundred bytes, and what was taken out of the tables."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.changed = threading.Condition(threading.RLock())
        tables: Any = SimpleNamespace(remove=self.removed.append)
        self.adapters = ResidentAdapters(tables, 100, self.changed)

    def expect(self, key: str) -> Pin:
        self.adapters.expect(key, f"models/{key}")
        return self.adapters.hold(key, lambda _: None)

    def bring(self, key: str, num_bytes: int) -> Pin:
        pin = self.expect(key)
        assert self.adapters.make_room(key, num_bytes)
        assert self.adapters.arrive(key) == [pin]
        return pin


@pytest.fixture
def room() -> Room:
    return Room()


def test_the_least_recently_used_that_nobody_holds_goes_first(room: Room) -> None:
    for key in "abcd":
        room.bring(key, 25).release()
    held = room.adapters.hold("b", lambda _: None)
    room.adapters.hold("a", lambda _: None).release()
    room.bring("e", 50).release()
    assert room.removed == ["c", "d"]
    assert room.adapters.labels() == ("models/b", "models/a", "models/e")
    held.release()
    room.bring("f", 100)
    assert room.removed == ["c", "d", "b", "a", "e"]
    assert room.adapters.num_bytes == 100
    assert room.adapters.num_dropped == 5


def test_no_more_is_dropped_than_must_be(room: Room) -> None:
    for key in "abc":
        room.bring(key, 30).release()
    room.bring("d", 10)
    assert room.removed == []
    assert room.adapters.num_bytes == 100


def test_what_is_held_stays_until_it_is_let_go(room: Room) -> None:
    first, second = room.bring("a", 60), room.adapters.hold("a", lambda _: None)
    room.expect("b")
    assert not room.adapters.make_room("b", 60)
    first.release()
    first.release()
    assert not room.adapters.make_room("b", 60), "another holds it still"
    assert room.adapters.num_bytes == 60
    second.release()
    assert room.adapters.make_room("b", 60)
    assert room.removed == ["a"]
    assert "a" not in room.adapters
    assert room.adapters.num_bytes == 60


def test_one_on_its_way_is_never_taken_out(room: Room) -> None:
    room.expect("a").release()
    assert room.adapters.make_room("a", 60)
    room.expect("b")
    assert not room.adapters.make_room("b", 60)
    assert room.removed == []
    assert room.adapters.expected() == ["a", "b"]


def test_one_that_can_never_fit_drops_nobody(room: Room) -> None:
    room.bring("a", 60).release()
    room.expect("b")
    with pytest.raises(CapacityError, match=r"takes 101 bytes, .* may take 100 bytes"):
        room.adapters.make_room("b", 101)
    assert room.removed == []


def test_bytes_of_one_that_is_taken_out_again_are_free(room: Room) -> None:
    room.expect("a")
    assert room.adapters.make_room("a", 100)
    room.adapters.take_out("a")
    assert room.removed == ["a"]
    assert len(room.adapters.forget("a")) == 1
    assert room.adapters.num_bytes == 0
    room.bring("b", 100)


def test_who_came_before_it_waited_and_who_comes_after_hits(room: Room) -> None:
    pins = [room.expect("a"), room.adapters.hold("a", lambda _: None)]
    assert not any(pin.is_ready for pin in pins)
    assert room.adapters.make_room("a", 1)
    assert set(room.adapters.arrive("a")) == set(pins)
    assert all(pin.is_ready for pin in pins)
    assert room.adapters.hold("a", lambda _: None).is_ready
    assert (room.adapters.num_loads, room.adapters.num_hits) == (1, 1)


def test_one_that_is_expected_is_forgotten_once_nobody_wants_it(room: Room) -> None:
    pin = room.expect("a")
    assert not room.adapters.forget_unwanted("a")
    pin.release()
    assert room.adapters.forget_unwanted("a")
    assert "a" not in room.adapters


def test_whoever_waits_for_room_hears_of_a_release(room: Room) -> None:
    pin, is_free = room.bring("a", 100), []

    def wait() -> None:
        with room.changed:
            is_free.append(room.changed.wait_for(lambda: room.adapters.make_room("b", 100), 60))

    with room.changed:
        room.expect("b")
        thread = threading.Thread(target=wait)
        thread.start()
    pin.release()
    thread.join(60)
    assert is_free == [True]


def test_a_pin_of_one_that_did_not_come_can_be_released(room: Room) -> None:
    pin = room.expect("a")
    assert room.adapters.forget("a") == [pin]
    again = room.expect("a")
    pin.release()
    assert not room.adapters.forget_unwanted("a"), "the other's hold is its own"
    again.release()
    assert room.adapters.forget_unwanted("a")
