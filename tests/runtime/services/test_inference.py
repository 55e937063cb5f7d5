"""Text in, text out, and the model let go of afterwards."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from fixtures.echo_runtime import EchoLog

from luthier.errors import (
    EngineError,
    InvalidInputError,
    ModelNotFoundError,
    NotSupportedError,
)
from luthier.runtime.registry.model_folder import ModelsDir
from luthier.runtime.registry.registry import ModelRegistry
from luthier.runtime.services.inference import InferenceService


@pytest.fixture
async def bench(tmp_path):
    log = EchoLog()
    models = ModelsDir(tmp_path)
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo" / "config.yml").write_text("")
    registry = ModelRegistry(models, load=log.load, max_loaded_models=2)
    yield SimpleNamespace(log=log, registry=registry, service=InferenceService(registry))
    await registry.close()


async def test_parameters_reach_the_model_and_its_answer_comes_back(bench):
    result = await bench.service.generate("echo", "a b", {"max_new_tokens": 3, "seed": 7})
    assert (result.generated_text, result.seed) == ("ba", 7)
    [(text, params)] = bench.log.calls
    assert (text, params.max_new_tokens) == ("a b", 3)


async def test_a_stream_gives_the_pieces(bench):
    pieces = [piece async for piece in bench.service.stream("echo", "a b", {})]
    assert [piece.generated_text for piece in pieces] == ["b", "a", ""]


async def test_closing_a_stream_frees_the_row_and_the_model(bench):
    stream = bench.service.stream("echo", "slow", {})
    await anext(stream)
    assert bench.log.num_running == 1
    bench.registry.retire("echo")
    await stream.aclose()
    assert bench.log.num_running == 0
    await bench.registry.close()
    assert bench.log.released == ["echo"]


async def test_cancelling_a_call_frees_the_row(bench):
    task = asyncio.ensure_future(bench.service.generate("echo", "slow", {}))
    while not bench.log.num_running:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.log.num_running == 0


async def test_a_failing_row_ends_its_own_stream_only(bench):
    good = bench.service.stream("echo", "slow", {})
    await anext(good)
    with pytest.raises(EngineError):
        [piece async for piece in bench.service.stream("echo", "broken now", {})]
    assert (await anext(good)).generated_text == "word "
    await good.aclose()


async def test_tokens_are_counted(bench):
    assert (await bench.service.tokenize("echo", "a b c")).token_count == 3


@pytest.mark.parametrize("name", ["generate", "tokenize"])
async def test_a_missing_and_an_unknown_model_are_told_apart(bench, name):
    arguments = ("x", {}) if name == "generate" else ("x",)
    with pytest.raises(InvalidInputError, match="Please provide model_id"):
        await getattr(bench.service, name)("", *arguments)
    with pytest.raises(ModelNotFoundError, match="'nope'"):
        await getattr(bench.service, name)("nope", *arguments)


@pytest.fixture
async def sorter(bench, tmp_path):
    (tmp_path / "sorter").mkdir()
    (tmp_path / "sorter" / "config.yml").write_text("")
    return bench.service


async def test_classes_come_back(sorter):
    results = (await sorter.classify("sorter", "ham spam")).results
    assert [each.label for each in results] == ["spam", "ham"]


async def test_a_failing_classification_is_told(sorter):
    with pytest.raises(EngineError, match="the row failed"):
        await sorter.classify("sorter", "broken")


async def test_who_classifies_writes_nothing_and_the_other_way_round(sorter):
    with pytest.raises(NotSupportedError, match=r"'sorter' \(Sorter\) writes no text"):
        await sorter.generate("sorter", "a b", {})
    with pytest.raises(NotSupportedError, match=r"'sorter' \(Sorter\) writes no text"):
        await sorter.generate_many("sorter", "a b", 2, {})
    with pytest.raises(NotSupportedError, match=r"'sorter' \(Sorter\) writes no text"):
        await anext(sorter.stream("sorter", "a b", {}))
    with pytest.raises(NotSupportedError, match=r"'echo' \(Echo\) tells no classes apart"):
        await sorter.classify("echo", "a b")
