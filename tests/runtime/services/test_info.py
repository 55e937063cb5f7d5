"""Versions and health."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.adapters.lora.building import create_lora
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import Engine, EngineStatus, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.engine_process.process_engine import ProcessEngine
from luthier.inference.options import EngineOptions, ProcessOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel
from luthier.runtime.services import info
from luthier.runtime.services.info import InfoService


def test_versions_name_what_matters():
    versions = InfoService().versions()
    assert versions.runtime_version == luthier.__version__
    assert {"caikit", "torch", "transformers"} <= versions.python_packages.keys()
    assert all(versions.python_packages.values())


def test_a_server_that_stops_is_not_healthy():
    service = InfoService()
    assert service.problem() == ""
    service.is_draining = True
    assert "stopping" in service.problem()


def test_a_dead_engine_is_told(monkeypatch):
    class DeadEngine:
        def status(self):
            return EngineStatus(is_healthy=False, detail="out of memory")

    monkeypatch.setattr(info, "engines", lambda: [DeadEngine()])
    assert InfoService().problem() == "out of memory"


def folder_of_lora(base: BaseModel, folder: Path) -> StoredAdapter:
    save_adapter(create_lora(base.model, LoraConfig(rank=2), seed=1), folder, base_model_name="b")
    return StoredAdapter(load_adapter(folder, base_model=base), folder, base_model=base)


@pytest.mark.parametrize("kind", [BatchedEngine, PlainEngine, ProcessEngine])
async def test_engines_tell_what_they_do_and_which_adapters_they_keep(
    kind: type[Engine],
    tiny_causal_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_dir)
    base = BaseModel.from_memory(model, AutoTokenizer.from_pretrained(tiny_causal_dir), name="b")
    adapter = folder_of_lora(base, tmp_path / "tickets" / "adapter")
    process = ProcessOptions() if kind is ProcessEngine else None
    engine = kind(base, EngineOptions(process=process))  # type: ignore[call-arg]
    monkeypatch.setattr(info, "engines", lambda: [engine])
    request = GenerationRequest((5, 6), SamplingParams(max_new_tokens=2), adapter)
    for _ in range(3):
        list(engine.submit(request))
    (told,) = await InfoService().engines()
    assert told["base_model"] == "b"
    assert told["is_healthy"]
    assert told["num_waiting"] == 0
    if kind is PlainEngine:
        assert told["adapters"] is None
    else:
        assert told["adapters"]["on_device"] == ("tickets/adapter",)
        assert (told["adapters"]["num_loads"], told["adapters"]["num_hits"]) == (1, 2)
        assert told["adapters"]["device_bytes"] > 0
    engine.close()
    (told,) = await InfoService().engines()
    assert (told["is_healthy"], told["detail"]) == (False, "closed")
