"""Loaded once, off the loop, reloaded when replaced, released when nobody uses it."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures.echo_runtime import EchoLog

from luthier.errors import (
    ArtifactError,
    CapacityError,
    ConflictError,
    ModelNotFoundError,
    ReplacedError,
)
from luthier.runtime.registry.model_folder import ModelsDir
from luthier.runtime.registry.registry import ModelRegistry


class Bench:
    """A registry of echo modules."""

    def __init__(self, folder: Path, max_loaded_models: int = 10) -> None:
        self.log = EchoLog()
        self.models = ModelsDir(folder)
        self.registry = ModelRegistry(
            self.models, load=self.log.load, max_loaded_models=max_loaded_models
        )

    def add(self, name: str, config: str = "x") -> None:
        folder = self.models.path / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.yml").write_text(config)

    async def touch(self, name: str) -> None:
        async with self.registry.use(name):
            pass

    async def until_released(self, *names: str) -> None:
        deadline = time.monotonic() + 60
        while self.log.released != list(names):
            assert time.monotonic() < deadline, self.log.released
            await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.registry.close()


async def test_a_model_is_loaded_by_its_first_request_and_only_once(bench):
    bench.add("a")
    bench.log.load_seconds = 0.1
    await asyncio.gather(*(bench.touch("a") for _ in range(20)))
    assert bench.log.loaded == ["a"]
    assert bench.registry.is_loaded("a")


async def test_loading_blocks_neither_the_loop_nor_other_models(bench):
    bench.add("slow")
    bench.add("quick")
    await bench.touch("quick")
    bench.log.load_seconds = 0.5
    slow = asyncio.ensure_future(bench.touch("slow"))
    await asyncio.sleep(0.01)
    started = time.monotonic()
    await bench.touch("quick")
    assert time.monotonic() - started < 0.3
    assert not bench.registry.is_loaded("slow")
    await slow


async def test_a_replaced_model_is_loaded_anew_and_the_old_one_ends_its_requests_first(bench):
    bench.add("a")
    async with bench.registry.use("a") as old:
        bench.models.remove("a")
        bench.add("a")
        async with bench.registry.use("a") as new:
            assert new is not old
            assert bench.log.released == []
    await bench.until_released("a")
    assert bench.log.loaded == ["a", "a"]
    async with bench.registry.use("a") as still:
        assert still is new


async def test_a_removed_model_is_unreachable_at_once(bench):
    bench.add("a")
    async with bench.registry.use("a"):
        bench.models.remove("a")
        with pytest.raises(ModelNotFoundError):
            await bench.touch("a")


async def test_a_retired_model_is_released_after_its_last_request_and_once(bench):
    bench.add("a")
    async with bench.registry.use("a"), bench.registry.use("a"):
        bench.registry.retire("a")
        bench.registry.retire("a")
        await asyncio.sleep(0.05)
        assert bench.log.released == []
    await bench.until_released("a")
    await asyncio.sleep(0.05)
    assert bench.log.released == ["a"]


async def test_a_model_that_cannot_be_loaded_tells_everyone_and_is_tried_again(bench):
    bench.add("a", "corrupt")
    bench.log.load_seconds = 0.05
    results = await asyncio.gather(*(bench.touch("a") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ArtifactError] * 3
    assert bench.log.loaded == ["a"]
    (bench.models.path / "a" / "config.yml").write_text("mended")
    await bench.touch("a")
    assert bench.log.loaded == ["a", "a"]
    assert bench.log.released == []


async def test_a_request_that_is_cancelled_does_not_stop_the_load_of_others(bench):
    bench.add("a")
    bench.log.load_seconds = 0.2
    first = asyncio.ensure_future(bench.touch("a"))
    second = asyncio.ensure_future(bench.touch("a"))
    await asyncio.sleep(0.05)
    first.cancel()
    await second
    assert bench.log.loaded == ["a"]


async def test_the_least_recently_used_idle_model_makes_room(tmp_path):
    bench = Bench(tmp_path, max_loaded_models=2)
    for name in ("a", "b", "c"):
        bench.add(name)
    await bench.touch("a")
    await bench.touch("b")
    await bench.touch("a")
    await bench.touch("c")
    await bench.until_released("b")
    assert bench.registry.is_loaded("a") and bench.registry.is_loaded("c")
    await bench.registry.close()


async def test_a_model_in_use_is_not_evicted(tmp_path):
    bench = Bench(tmp_path, max_loaded_models=1)
    bench.add("a")
    bench.add("b")
    async with bench.registry.use("a"):
        await bench.touch("b")
        assert "a" not in bench.log.released
    await bench.registry.close()


async def test_close_releases_everything_and_refuses_the_rest(bench):
    bench.add("a")
    bench.add("b")
    await bench.touch("a")
    await bench.touch("b")
    await bench.registry.close()
    assert sorted(bench.log.released) == ["a", "b"]
    with pytest.raises(CapacityError):
        await bench.touch("a")


async def test_a_loaded_module_can_be_looked_at(bench):
    bench.add("a")
    assert bench.registry.loaded_module("a") is None
    async with bench.registry.use("a") as module:
        assert bench.registry.loaded_module("a") is module


def test_a_folder_whose_config_looks_the_same_is_another_content_still(bench):
    bench.add("a")
    before = bench.models.version_of("a")
    config = bench.models.path / "a" / "config.yml"
    times = config.stat().st_atime_ns, config.stat().st_mtime_ns
    config.write_text("y")
    os.utime(config, ns=times)
    assert bench.models.version_of("a") != before


async def test_what_was_replaced_while_it_was_read_is_read_again_as_a_whole(bench, monkeypatch):
    bench.add("a")
    load = bench.log.load
    accidents = [lambda module: bench.add("a"), lambda module: bench.add("a"), lambda module: None]

    def disturbed(folder):
        module = load(folder)
        accidents.pop(0)(module)
        return module

    monkeypatch.setattr(bench.registry, "_load", disturbed)
    async with bench.registry.use("a"):
        assert bench.log.loaded == ["a", "a", "a"]
        assert bench.log.released == ["a", "a"], "modules of half-old content serve nobody"
        assert bench.registry.is_loaded("a")


@pytest.mark.parametrize("error", [ArtifactError("half of it"), FileNotFoundError("gone")])
async def test_an_error_counts_only_if_the_folder_stayed_as_it_was(bench, monkeypatch, error):
    bench.add("a")
    load = bench.log.load

    def disturbed(folder):
        monkeypatch.setattr(bench.registry, "_load", load)
        bench.add("a")
        raise error

    monkeypatch.setattr(bench.registry, "_load", disturbed)
    await bench.touch("a")
    assert bench.log.loaded == ["a"]


async def test_a_model_that_was_undeployed_while_it_was_read_is_not_there(bench, monkeypatch):
    bench.add("a")
    load = bench.log.load

    def disturbed(folder):
        module = load(folder)
        bench.models.remove("a")
        return module

    monkeypatch.setattr(bench.registry, "_load", disturbed)
    with pytest.raises(ModelNotFoundError):
        await bench.touch("a")
    assert bench.log.released == ["a"]


async def test_work_that_could_not_begin_starts_again_with_what_is_there_now(bench):
    bench.add("a")
    used = []

    async def work(module):
        used.append(module)
        if len(used) < 3:
            bench.add("a")
            raise ReplacedError("gone")
        return "done"

    assert await bench.registry.run("a", work) == "done"
    assert bench.log.loaded == ["a"] * 3
    assert len(set(map(id, used))) == 3
    await bench.until_released("a", "a")


async def test_files_that_are_not_those_of_the_module_are_read_anew_without_a_new_version(bench):
    bench.add("a")
    used = []

    async def pieces(module):
        used.append(module)
        if len(used) == 1:
            raise ReplacedError("somebody wrote into the folder")
        yield 1
        yield 2

    assert [piece async for piece in bench.registry.stream("a", pieces)] == [1, 2]
    assert used[0] is not used[1]


async def test_a_stream_that_has_begun_is_not_begun_again(bench):
    bench.add("a")

    async def pieces(module):
        yield 1
        raise ReplacedError("late")

    got = []
    with pytest.raises(ReplacedError, match="late"):
        async for piece in bench.registry.stream("a", pieces):
            got.append(piece)
    assert got == [1]


async def test_a_model_that_never_rests_is_given_up(bench):
    bench.add("a")

    async def work(module):
        raise ReplacedError("again")

    with pytest.raises(ConflictError, match="'a' was replaced 10 times"):
        await bench.registry.run("a", work)
    await bench.until_released(*["a"] * 10)
