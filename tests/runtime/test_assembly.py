"""Every setting reaches what it is about."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from fixtures.echo_runtime import EchoLog

from luthier.config import load_config
from luthier.errors import CapacityError, ModelNotFoundError, NameNotAllowedError
from luthier.modules import configure
from luthier.runtime import assembly
from luthier.runtime.jobs.base import Job, JobState, TrainingSpec
from luthier.runtime.jobs.job_folder import JobFolder
from luthier.runtime.jobs.memory_store import MemoryJobStore
from luthier.runtime.services.training_request import TrainingRequest

RECORDS = [{"input": "a", "output": "b"}]


@pytest.fixture
def make_services(tmp_path):
    def make(**environ: str):
        config = load_config({"RUNTIME_LOCAL_MODELS_DIR": str(tmp_path / "models"), **environ})
        log = EchoLog()
        registry = assembly.make_registry(config, log.load)
        store = MemoryJobStore()
        services = assembly.make_services(
            config,
            configure(config),
            registry=registry,
            store=store,
            executor=assembly.make_executor(config, store),
            load=log.load,
        )
        return services, registry, store

    yield make
    configure(load_config({}))


def request(model_name: str = "m") -> TrainingRequest:
    return TrainingRequest("module", model_name, {}, RECORDS)


async def test_names_are_as_long_as_the_config_says(make_services):
    services, registry, _ = make_services(TRAINING_LIMITS_MAX_MODEL_NAME_CHARS="5")
    with pytest.raises(NameNotAllowedError, match="at most 5"):
        registry.models.folder_of("sixsix")
    with pytest.raises(NameNotAllowedError, match="at most 5"):
        await services.training.submit(request("sixsix"))


async def test_the_models_folder_is_made(make_services, tmp_path):
    _, registry, _ = make_services()
    assert (tmp_path / "models").is_dir()
    with pytest.raises(ModelNotFoundError):
        registry.models.version_of("nope")


async def test_an_executor_has_the_limits_of_the_config(tmp_path):
    config = load_config({"RUNTIME_TRAINING_MAX_WAITING_JOBS": "0"})
    executor = assembly.make_executor(config, MemoryJobStore())
    await executor.stop()
    with pytest.raises(CapacityError):
        executor.submit(None)


def test_a_saved_model_is_read_by_our_modules(tmp_path):
    with pytest.raises(Exception, match=r"config\.yml"):
        assembly.load_saved_model(tmp_path)


async def test_trainings_share_no_weights_with_processes(tmp_path, monkeypatch):
    """The way into a child process is a seam: its environment is what it is told."""
    seen: list[str | None] = []

    async def refuse(*command: str, env: dict[str, str], **others: object) -> None:
        seen.append(env.get("INFERENCE_PROCESS_ENABLED"))
        raise OSError("no processes today")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    store = MemoryJobStore()
    executor = assembly.make_executor(load_config({"INFERENCE_PROCESS_ENABLED": "true"}), store)
    spec = TrainingSpec("module", "m", {}, tmp_path / "models" / "m", 1, 0)
    folder = JobFolder(tmp_path / "jobs" / "job")
    folder.create(spec, RECORDS, [])
    executor.submit(Job("job", spec, folder.path, JobState.QUEUED, datetime.now(UTC)))
    async with asyncio.timeout(60):
        while store.get("job").state is not JobState.ERRORED:
            await asyncio.sleep(0.01)
    assert seen == ["false"]
