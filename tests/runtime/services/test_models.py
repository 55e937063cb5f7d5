"""Deploy and undeploy: inside the folder, whole or not at all."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from fixtures.echo_runtime import EchoLog

from luthier.errors import (
    ArtifactError,
    ConflictError,
    InvalidInputError,
    ModelNotFoundError,
    NameNotAllowedError,
)
from luthier.runtime.registry.model_folder import ModelsDir
from luthier.runtime.registry.registry import ModelRegistry
from luthier.runtime.services.models import ModelsService

FILES = {"config.yml": b"module_id: m-1\n", "adapter/weights": b"xyz"}


@pytest.fixture
async def bench(tmp_path):
    log = EchoLog()
    models = ModelsDir(tmp_path / "models")
    registry = ModelRegistry(models, load=log.load, max_loaded_models=5)
    yield SimpleNamespace(
        service=ModelsService(registry, log.load), registry=registry, path=models.path, log=log
    )
    await registry.close()


def everything_below(folder) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, files in os.walk(folder)
        for name in files
    )


async def test_a_deployed_model_is_there_with_all_its_files(bench):
    info = await bench.service.deploy("new", FILES)
    assert (info.name, info.module_id, info.size, info.loaded) == ("new", "m-1", 18, False)
    assert everything_below(bench.path) == ["new/adapter/weights", "new/config.yml"]
    async with bench.registry.use("new"):
        assert (await bench.service.describe(["new"])).models[0].loaded


async def test_an_existing_model_is_not_overwritten(bench):
    await bench.service.deploy("new", FILES)
    with pytest.raises(ConflictError, match="'new'"):
        await bench.service.deploy("new", FILES)
    with pytest.raises(ConflictError, match="case"):
        await bench.service.deploy("NEW", FILES)


@pytest.mark.parametrize(
    "name",
    ["../pwn.txt", "/tmp/pwn.txt", "a/../../pwn", "a\\..\\b", "x\0", "", ".ssh/id", "a//b", "./a"],
)
async def test_a_file_that_would_leave_the_folder_is_refused(bench, name):
    with pytest.raises(NameNotAllowedError):
        await bench.service.deploy("new", {**FILES, name: b"pwn"})
    assert everything_below(bench.path.parent) == []


@pytest.mark.parametrize("model_id", ["../victim", "/abs", "a/b", "x\0y", "x" * 10_000, ""])
async def test_a_model_id_that_would_leave_the_folder_is_refused(bench, model_id):
    victim = bench.path.parent / "victim"
    victim.mkdir()
    (victim / "config.yml").write_text("")
    with pytest.raises(NameNotAllowedError):
        await bench.service.deploy(model_id, FILES)
    with pytest.raises(NameNotAllowedError):
        await bench.service.undeploy(model_id)
    assert everything_below(bench.path.parent) == ["victim/config.yml"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "empty"),
        ({"weights": b""}, "config.yml"),
        ({"config.yml": b"", "config.yml/x": b""}, "both a file and a folder"),
        ({"config.yml": b"", **{f"f{n}": b"" for n in range(1001)}}, "at most"),
    ],
)
async def test_files_that_make_no_model_are_refused(bench, files, message):
    with pytest.raises(InvalidInputError, match=message):
        await bench.service.deploy("new", files)
    assert everything_below(bench.path) == []


async def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(bench):
    with pytest.raises(ArtifactError):
        await bench.service.deploy("new", {"config.yml": b"corrupt"})
    assert list(bench.path.iterdir()) == []


async def test_an_undeployed_model_is_gone_and_released(bench):
    await bench.service.deploy("new", FILES)
    async with bench.registry.use("new"):
        assert (await bench.service.undeploy("new")).model_id == "new"
        assert (await bench.service.describe()).models == []
    await bench.registry.close()
    assert bench.log.released == ["new", "new"]
    assert list(bench.path.iterdir()) == []
    with pytest.raises(ModelNotFoundError):
        await bench.service.undeploy("new")


async def test_all_models_are_listed_by_name(bench):
    for name in ("b", "a"):
        await bench.service.deploy(name, FILES)
    assert [info.name for info in (await bench.service.describe()).models] == ["a", "b"]
    with pytest.raises(ModelNotFoundError, match="'nope'"):
        await bench.service.describe(["a", "nope"])
