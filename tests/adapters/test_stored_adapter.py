from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.adapters.lora.building import create_lora
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError, ReplacedError
from luthier.resources.base_model import BaseModel
from tests.fixtures.lora_models import disturb


@pytest.fixture(scope="module")
def base(tiny_causal_dir: Path) -> BaseModel:
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_dir)
    return BaseModel.from_memory(model, AutoTokenizer.from_pretrained(tiny_causal_dir), name="tiny")


def save(base: BaseModel, folder: Path, *, seed: int) -> None:
    adapter = create_lora(base.model, LoraConfig(rank=4), seed=seed)
    disturb(adapter, seed=seed)
    save_adapter(adapter, folder, base_model_name=base.name, overwrite=True)


@pytest.fixture
def folder(base: BaseModel, tmp_path: Path) -> Path:
    save(base, tmp_path / "adapter", seed=1)
    return tmp_path / "adapter"


def make_stored(base: BaseModel, folder: Path) -> StoredAdapter:
    return StoredAdapter(load_adapter(folder, base_model=base), folder, base_model=base)


def test_it_gives_what_the_adapter_gives_and_knows_it_without_the_tensors(
    base: BaseModel, folder: Path
) -> None:
    direct = load_adapter(folder, base_model=base)
    stored = make_stored(base, folder)
    for path, factors in stored.linear_deltas().items():
        assert torch.equal(factors.lora_a, direct.linear_deltas()[path].lora_a)
    gc.collect()
    assert stored._kept() is None
    assert stored.content_hash() == direct.content_hash()
    assert stored.delta_layers() == direct.delta_layers()
    assert stored._kept() is None
    ids = torch.arange(5)[None] + 7
    with torch.no_grad():
        got = stored.tuned_model(base.model)(input_ids=ids).logits
        assert torch.equal(got, direct.tuned_model(base.model)(input_ids=ids).logits)
    assert stored.peft_config() == direct.peft_config()
    assert stored.peft_state().keys() == direct.peft_state().keys()
    assert dict(stored.named_parameters()).keys() == dict(direct.named_parameters()).keys()


def test_layers_and_rows_of_its_own_are_known_without_the_tensors(
    base: BaseModel, tmp_path: Path
) -> None:
    config = LoraConfig(rank=2, modules_to_save=("norm",), trainable_token_indices=(5, 6))
    adapter = create_lora(base.model, config, seed=1)
    disturb(adapter)
    save_adapter(adapter, tmp_path / "adapter", base_model_name=base.name)
    stored = make_stored(base, tmp_path / "adapter")
    gc.collect()
    assert {"model.norm", "model.embed_tokens"} < stored.whole_layers() == adapter.whole_layers()
    assert stored._kept() is None
    direct = stored.loaded()
    assert direct.loaded() is direct
    assert stored.whole_modules() == direct.whole_modules()
    assert stored.whole_modules().keys() == adapter.whole_modules().keys()
    rows, expected = stored.replaced_rows(), adapter.replaced_rows()
    assert rows is not None
    assert expected is not None
    assert torch.equal(rows.rows, expected.rows)
    assert rows.paths == expected.paths == ("model.embed_tokens",)


def test_it_is_read_once_while_somebody_holds_it(base: BaseModel, folder: Path) -> None:
    stored = make_stored(base, folder)
    gc.collect()
    held = stored.loaded()
    shutil.rmtree(folder)
    assert stored.loaded() is held
    del held
    gc.collect()
    with pytest.raises(ReplacedError, match="adapter 'adapter' can no longer be read"):
        stored.loaded()


def test_another_adapter_in_the_folder_is_refused(base: BaseModel, folder: Path) -> None:
    stored = make_stored(base, folder)
    gc.collect()
    save(base, folder, seed=2)
    with pytest.raises(ReplacedError, match="replaced"):
        stored.loaded()


def test_it_does_not_keep_the_base_model_alive(tiny_causal_dir: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_dir)
    passing = BaseModel.from_memory(model, tokenizer, name="passing")
    stored = make_stored(passing, folder)
    del passing
    gc.collect()
    with pytest.raises(ArtifactError, match="base model of adapter 'adapter' was released"):
        stored.loaded()


def test_what_another_has_read_is_read_when_it_is_needed(base: BaseModel, folder: Path) -> None:
    direct = load_adapter(folder, base_model=base)
    known = {"content_hash": direct.content_hash(), "delta_layers": direct.delta_layers()}
    unread = StoredAdapter.unread(folder, base_model=base, **known)
    assert (unread.content_hash(), unread.delta_layers()) == tuple(known.values())
    assert unread._kept() is None
    for name, tensor in direct.peft_state().items():
        assert torch.equal(unread.peft_state()[name], tensor)
    save(base, folder, seed=2)
    gc.collect()
    with pytest.raises(ReplacedError, match="replaced by another one"):
        unread.loaded()
