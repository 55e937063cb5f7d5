from __future__ import annotations

import gc
from pathlib import Path

import torch

from luthier.adapters.lora.building import create_lora
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.options.lora import LoraConfig
from luthier.inference.deltas.layer_changes import changes_of
from luthier.resources.base_model import BaseModel
from tests.fixtures.lora_models import disturb


def test_an_adapter_on_disk_is_read_once_for_all_that_it_does(
    causal_base: BaseModel, tmp_path: Path
) -> None:
    config = LoraConfig(rank=2, modules_to_save=("lm_head", "norm"))
    adapter = create_lora(causal_base.model, config, seed=1)
    disturb(adapter)
    folder = tmp_path / "adapter"
    save_adapter(adapter, folder, base_model_name="tiny")
    read = load_adapter(folder, base_model=causal_base)
    stored = StoredAdapter(read, folder, base_model=causal_base)
    del read
    gc.collect()
    reads: list[None] = []

    class Counting(StoredAdapter):
        def _read(self) -> object:  # type: ignore[override]
            reads.append(None)
            return super()._read()

    stored.__class__ = Counting
    changes = changes_of(stored)
    assert len(reads) == 1
    assert changes.deltas.keys() == adapter.delta_layers() == stored.delta_layers()
    assert changes.modules.keys() == adapter.whole_layers() == stored.whole_layers()
    assert {"lm_head", "model.norm"} < stored.whole_layers()
    for path, layer in changes.modules.items():
        assert torch.equal(layer.weight, adapter.whole_modules()[path].weight)  # type: ignore[arg-type]
