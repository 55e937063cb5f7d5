from __future__ import annotations

import threading
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
    EngineError,
    LuthierError,
    ReplacedError,
)
from luthier.inference.deltas.adapter_pool import AdapterPool, Pin
from luthier.inference.deltas.delta_tables import DeltaTables

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
        self.gate = threading.Event()
        self.gate.set()

    def linear_deltas(self) -> Mapping[str, LoraFactors]:
        self.num_reads += 1
        assert self.gate.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return {"layer": LoraFactors(self.lora_a, self.lora_b, scaling=1.0)}

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


@pytest.fixture
def tables() -> DeltaTables:
    layers = {"layer": nn.Linear(SIZE, SIZE)}
    return DeltaTables(layers, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def make_pool(tables: DeltaTables) -> Iterator[Callable[..., AdapterPool]]:
    made: list[AdapterPool] = []

    def make(**limits: int) -> AdapterPool:
        made.append(AdapterPool(tables, **limits))
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
