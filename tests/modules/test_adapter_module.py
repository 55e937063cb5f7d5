"""Adapters of each kind are saved and read by the same code, which knows them apart."""

from __future__ import annotations

import pytest

from luthier.adapters.heads.building import create_head
from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import NotSupportedError
from luthier.modules import HeadTuning, LoraTuning, PeftPromptTuning


@pytest.fixture
def adapters(here, tuned):
    with here.base_models.acquire("tiny-causal") as base:
        yield {
            HeadTuning: create_head(base.model, ("ham", "spam"), seed=1),
            LoraTuning: create_lora(base.model, LoraConfig(rank=2), seed=1),
            PeftPromptTuning: tuned.adapter,
        }


@pytest.mark.parametrize("tuned", ["tiny-causal"], indirect=True)
@pytest.mark.parametrize("module", [HeadTuning, LoraTuning, PeftPromptTuning])
def test_a_module_saves_its_kind_of_adapter_and_refuses_others(module, adapters, tmp_path):
    model = module.bootstrap("tiny-causal", adapters[module], verbalizer="Text: {{input}}")
    model.save(tmp_path / "model")
    again = module.load(tmp_path / "model")
    assert again.adapter.content_hash() == model.adapter.content_hash()
    assert again.verbalizer == "Text: {{input}}"
    for other, adapter in adapters.items():
        if other is not module:
            with pytest.raises(NotSupportedError, match=f"module {module.__name__} runs"):
                module.bootstrap("tiny-causal", adapter)
    for each in (model, again):
        each.release()


@pytest.mark.parametrize("tuned", ["tiny-causal"], indirect=True)
def test_an_adapter_of_another_kind_in_a_folder_is_refused(adapters, tmp_path):
    model = LoraTuning.bootstrap("tiny-causal", adapters[LoraTuning])
    model.save(tmp_path / "model")
    model.release()
    with pytest.raises(NotSupportedError, match="runs tuned prompts, this adapter is lora"):
        PeftPromptTuning.load(tmp_path / "model")
