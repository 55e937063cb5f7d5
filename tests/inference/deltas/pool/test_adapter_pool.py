from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.lora_factors import LoraFactors
from luthier.errors import (
    ArtifactError,
    CapacityError,
    ConflictError,
    EngineDownError,
    EngineError,
    LuthierError,
    ReplacedError,
)
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.pool.adapter_pool import AdapterPool
from luthier.inference.deltas.pool.adapter_readers import MAX_READERS
from luthier.inference.deltas.pool.resident_adapters import Pin

SIZE = 8
#: Bytes of an adapter of rank 1: one row of A and one of B in fp32.
ROW = 2 * SIZE * 4
WAIT_SECONDS = 60


class GivenDeltas(Adapter):
    """The adapter contract with one delta, which can be slow to read, broken or changing."""

    method = "given_deltas"

    def __init__(self, name: str, *, rank: int = 1, error: Exception | None = None) -> None:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        self.lora_a = nn.Parameter(torch.randn(rank, SIZE, generator=generator))
        self.lora_b = nn.Parameter(torch.randn(SIZE, rank, generator=generator))
        self.hash = name
        self.error = error
        self.num_reads = 0
        self.has_begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def linear_deltas(self) -> Mapping[str, LoraFactors]:
        self.num_reads += 1
        self.has_begun.set()
        assert self.gate.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return {"layer": LoraFactors(self.lora_a, self.lora_b, scaling=1.0)}

    @property
    def label(self) -> str:
        return f"models/{self.hash}"

    def content_hash(self) -> str:
        return self.hash

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(())

    def soft_prompt(self) -> SoftPromptTensors:
        return SoftPromptTensors()

    def peft_config(self) -> dict[str, Any]:
        return {}

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        return {}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> GivenDeltas:
        return self


class Answer:
    """What a request is told."""

    def __init__(self) -> None:
        self.error: LuthierError | None = None
        self._came = threading.Event()

    def __call__(self, error: LuthierError | None) -> None:
        self.error = error
        self._came.set()

    @property
    def has_come(self) -> bool:
        return self._came.is_set()

    def wait(self) -> LuthierError | None:
        assert self._came.wait(WAIT_SECONDS)
        return self.error


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def tables() -> DeltaTables:
    layers = {"layer": nn.Linear(SIZE, SIZE)}
    return DeltaTables(layers, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def make_pool(tables: DeltaTables) -> Iterator[Callable[..., AdapterPool]]:
    made: list[AdapterPool] = []

    def make(**limits: float) -> AdapterPool:
        made.append(AdapterPool(tables, **limits))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def bring(pool: AdapterPool, adapter: GivenDeltas) -> Pin:
    """Pin an adapter and wait until it is there."""
    answer = Answer()
    pin = pool.pin(adapter.hash, adapter, answer)
    if not pin.is_ready:
        assert answer.wait() is None
    return pin


def test_an_adapter_is_read_once_for_all_who_pin_it(
    tables: DeltaTables, make_pool: Callable[..., AdapterPool]
) -> None:
    pool = make_pool(max_device_bytes=10 * ROW)
    adapter = GivenDeltas("a")
    adapter.gate.clear()
    answers = [Answer() for _ in range(3)]
    pins = [pool.pin("a", adapter, answer) for answer in answers]
    assert not any(pin.is_ready for pin in pins)
    adapter.gate.set()
    assert [answer.wait() for answer in answers] == [None] * 3
    assert pool.pin("a", adapter, Answer()).is_ready
    assert adapter.num_reads == 1
    content = tables.by_path["layer"].content
    assert torch.equal(content.a[content.rows["a"].start], adapter.lora_a[0])


def test_without_an_adapter_what_is_there_is_held_and_what_was_dropped_is_told(
    make_pool: Callable[..., AdapterPool],
) -> None:
    pool = make_pool(max_device_bytes=ROW)
    pin = bring(pool, GivenDeltas("a"))
    held = pool.pin("a", None, Answer())
    assert held.is_ready
    pin.release()
    waiting = Answer()
    other = pool.pin("b", GivenDeltas("b"), waiting)
    assert not other.is_ready, "the first is still held"
    held.release()
    assert waiting.wait() is None
    assert not pool.keeps("a")
    with pytest.raises(ReplacedError, match="dropped"):
        pool.pin("a", None, Answer())


def test_the_least_recently_used_that_nobody_pins_makes_room(
    tables: DeltaTables, make_pool: Callable[..., AdapterPool]
) -> None:
    pool = make_pool(max_device_bytes=3 * ROW)
    for name in "abc":
        bring(pool, GivenDeltas(name)).release()
    bring(pool, GivenDeltas("a")).release()
    pinned = bring(pool, GivenDeltas("b"))
    bring(pool, GivenDeltas("d")).release()
    assert [name for name in "abcd" if tables.has(name)] == ["a", "b", "d"]
    bring(pool, GivenDeltas("e", rank=2)).release()
    assert [name for name in "abcde" if tables.has(name)] == ["b", "e"]
    assert pool.status().device_bytes == 3 * ROW
    pinned.release()


def test_a_load_waits_until_those_who_pin_let_go(
    tables: DeltaTables, make_pool: Callable[..., AdapterPool]
) -> None:
    pool = make_pool(max_device_bytes=2 * ROW)
    first, second = bring(pool, GivenDeltas("a")), bring(pool, GivenDeltas("b"))
    answer = Answer()
    pool.pin("c", GivenDeltas("c"), answer)
    # What is there can be used meanwhile.
    assert pool.pin("a", GivenDeltas("a"), Answer()).is_ready
    assert not answer.has_come
    second.release()
    assert answer.wait() is None
    assert tables.has("a")
    assert not tables.has("b")
    first.release()


def test_who_gives_up_waiting_makes_way_for_the_next(
    make_pool: Callable[..., AdapterPool],
) -> None:
    pool = make_pool(max_device_bytes=ROW)
    held = bring(pool, GivenDeltas("a"))
    dropped, wanted = Answer(), Answer()
    pin = pool.pin("b", GivenDeltas("b"), dropped)
    pool.pin("c", GivenDeltas("c"), wanted)
    pin.release()
    pin.release()
    held.release()
    assert wanted.wait() is None
    assert not dropped.has_come


def test_an_adapter_beyond_the_limit_is_refused_and_the_others_stay(
    make_pool: Callable[..., AdapterPool],
) -> None:
    pool = make_pool(max_device_bytes=2 * ROW)
    bring(pool, GivenDeltas("a")).release()
    answer = Answer()
    pool.pin("large", GivenDeltas("large", rank=3), answer)
    error = answer.wait()
    assert isinstance(error, CapacityError)
    assert f"{3 * ROW} bytes" in str(error)
    assert f"{2 * ROW} bytes" in str(error)
    assert bring(pool, GivenDeltas("a")).is_ready
    assert pool.status().num_loads == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ArtifactError("it is gone"), ArtifactError), (OSError("disk"), EngineError)],
)
def test_an_adapter_that_cannot_be_read_is_an_error_of_its_requests_alone(
    error: Exception, kind: type[LuthierError], make_pool: Callable[..., AdapterPool]
) -> None:
    pool = make_pool(max_device_bytes=10 * ROW)
    answer = Answer()
    pool.pin("broken", GivenDeltas("broken", error=error), answer)
    assert isinstance(answer.wait(), kind)
    bring(pool, GivenDeltas("a"))
    # The next request tries again.
    bring(pool, GivenDeltas("broken"))
    assert pool.status().num_on_device == 2


def test_an_adapter_that_changed_since_it_was_asked_for_is_refused(
    tables: DeltaTables, make_pool: Callable[..., AdapterPool]
) -> None:
    pool = make_pool(max_device_bytes=10 * ROW)
    adapter = GivenDeltas("old")
    adapter.gate.clear()
    answer = Answer()
    pool.pin("old", adapter, answer)
    adapter.hash = "new"
    adapter.gate.set()
    assert isinstance(answer.wait(), ConflictError)
    assert not tables.has("old")
    assert pool.status().device_bytes == 0


def test_closing_tells_everybody_who_waits(make_pool: Callable[..., AdapterPool]) -> None:
    pool = make_pool(max_device_bytes=ROW)
    bring(pool, GivenDeltas("a"))
    answers = [Answer(), Answer()]
    for name, answer in zip("bc", answers, strict=True):
        pool.pin(name, GivenDeltas(name), answer)
    pool.close()
    assert all(isinstance(answer.wait(), EngineError) for answer in answers)
    with pytest.raises(EngineError, match="closed"):
        pool.pin("a", GivenDeltas("a"), Answer())


def test_a_thousand_adapters_cost_the_bytes_of_those_that_are_there(
    tables: DeltaTables, make_pool: Callable[..., AdapterPool]
) -> None:
    pool = make_pool(max_device_bytes=100 * ROW)
    for index in range(1000):
        bring(pool, GivenDeltas(str(index))).release()
    status = pool.status()
    assert status.num_on_device == 100
    assert status.device_bytes == 100 * ROW
    rows = tables.by_path["layer"].content.rows
    assert len(rows) == 100
    assert max(each.stop for each in rows.values()) <= 101


def test_host_memory_saves_the_way_to_the_disk(
    tables: DeltaTables, make_pool: Callable[..., AdapterPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only beside another device is there a host tier; here the CPU plays one.
    with monkeypatch.context() as patch:
        patch.setattr(tables, "device", torch.device("meta"))
        pool = make_pool(max_device_bytes=ROW, max_host_bytes=2 * ROW)
    adapters = {name: GivenDeltas(name) for name in "abc"}
    for name in "ababcba":
        bring(pool, adapters[name]).release()
    # c pushed a out of two places; the last a is read again.
    assert {name: adapter.num_reads for name, adapter in adapters.items()} == {
        "a": 2, "b": 1, "c": 1,
    }  # fmt: skip
    assert pool.status().host_bytes == 2 * ROW
    content = tables.by_path["layer"].content
    assert torch.equal(content.a[content.rows["a"].start], adapters["a"].lora_a[0])


class Stuck:
    """A pool whose disk does not answer for some adapters, and the clock that says how long."""

    def __init__(self, pool: AdapterPool) -> None:
        self.pool, self.now = pool, 1000.0
        pool._readers.clock = lambda: self.now
        self.adapters: list[GivenDeltas] = []

    def ask(self, name: str) -> Answer:
        """Ask for one that is not read before ``answer`` says so."""
        adapter, answer = GivenDeltas(name), Answer()
        adapter.gate.clear()
        self.adapters.append(adapter)
        self.pool.pin(name, adapter, answer)
        assert adapter.has_begun.wait(WAIT_SECONDS)
        return answer

    def lasts(self, seconds: float) -> None:
        """Let time pass, and the pool look."""
        self.now += seconds
        self.pool.look()

    def answer(self) -> None:
        """The disk is there again."""
        for adapter in self.adapters:
            adapter.gate.set()


@pytest.fixture
def stuck(make_pool: Callable[..., AdapterPool]) -> Iterator[Stuck]:
    made = Stuck(make_pool(max_device_bytes=10 * ROW, max_load_seconds=120))
    yield made
    made.answer()


def test_who_waits_for_an_adapter_that_is_not_read_in_time_is_told_which_and_others_are_read(
    stuck: Stuck,
) -> None:
    pool, answer = stuck.pool, stuck.ask("a")
    stuck.lasts(119)
    assert not answer.has_come
    bring(pool, GivenDeltas("b"))  # it is slow, so others need not wait for its end
    stuck.lasts(2)
    error = answer.wait()
    assert isinstance(error, EngineDownError)
    assert "adapter 'models/a' could not be read in 120 s" in str(error)
    assert error.retry_after_seconds > 0
    bring(pool, GivenDeltas("c"))
    assert pool.failure == "", "three more threads may hang"
    # Nobody waits for the same disk again, nor spends a thread on it.
    with pytest.raises(EngineDownError, match="'models/a'"):
        pool.pin("a", GivenDeltas("a"), Answer())
    assert not pool.keeps("a")
    assert pool.pin("b", GivenDeltas("b"), Answer()).is_ready


def test_one_that_is_read_after_all_is_asked_for_anew(stuck: Stuck, tables: DeltaTables) -> None:
    answer = stuck.ask("a")
    stuck.lasts(121)
    assert isinstance(answer.wait(), EngineDownError)
    stuck.answer()
    wait_for(lambda: stuck.pool._readers.overdue("a") is None)
    assert not tables.has("a"), "what came too late is dropped"
    bring(stuck.pool, GivenDeltas("a"))
    assert tables.has("a")
    assert stuck.pool.status().num_loads == 1


def test_threads_that_hang_are_bounded_and_health_says_so_until_one_comes_back(
    stuck: Stuck,
) -> None:
    pool = stuck.pool
    there = bring(pool, GivenDeltas("there"))
    answers = []
    for index in range(MAX_READERS):
        answers.append(stuck.ask(f"{index}"))
        stuck.lasts(2)
    waiting = Answer()
    pool.pin("waiting", GivenDeltas("waiting"), waiting)
    assert pool.failure == ""
    stuck.lasts(121)
    for index, answer in enumerate(answers):
        assert f"'models/{index}'" in str(answer.wait())
    text = "no adapter can be read: 4 threads have been reading 'models/0', 'models/1', 'models/2'"
    assert text in pool.failure
    assert isinstance(waiting.wait(), EngineDownError)
    with pytest.raises(EngineDownError, match="no adapter can be read"):
        pool.pin("new", GivenDeltas("new"), Answer())
    assert pool.pin("there", None, Answer()).is_ready, "what is there needs no disk"
    there.release()
    stuck.answer()
    wait_for(lambda: pool.failure == "")
    bring(pool, GivenDeltas("new"))


def test_an_adapter_is_given_up_in_time_while_another_waits_for_room(stuck: Stuck) -> None:
    pool = stuck.pool
    held = bring(pool, GivenDeltas("held", rank=10))
    answer, large = stuck.ask("a"), Answer()
    stuck.lasts(2)
    pool.pin("large", GivenDeltas("large", rank=10), large)
    stuck.lasts(119)
    assert isinstance(answer.wait(), EngineDownError)
    assert not large.has_come, "waiting for room is no fault of the disk"
    held.release()
    assert large.wait() is None


def test_a_pool_whose_disk_hangs_can_be_closed(stuck: Stuck) -> None:
    overdue = stuck.ask("a")
    stuck.lasts(121)
    waiting = stuck.ask("b")
    stuck.pool.close()
    assert isinstance(overdue.wait(), EngineDownError)
    assert "closed" in str(waiting.wait())


def test_without_a_limit_a_disk_may_take_its_time(make_pool: Callable[..., AdapterPool]) -> None:
    stuck = Stuck(make_pool(max_device_bytes=10 * ROW, max_load_seconds=0))
    answer = stuck.ask("a")
    stuck.lasts(10**9)
    assert not answer.has_come
    stuck.answer()
    assert answer.wait() is None


def test_what_the_pool_did_can_be_told(make_pool: Callable[..., AdapterPool]) -> None:
    pool = make_pool(max_device_bytes=2 * ROW)
    for name in "abca":
        bring(pool, GivenDeltas(name)).release()
    bring(pool, GivenDeltas("c")).release()
    status = pool.status()
    assert status.on_device == ("models/a", "models/c")
    assert (status.num_loads, status.num_hits, status.num_dropped) == (4, 1, 2)
