from __future__ import annotations

import torch
from fixtures.lora_models import make_llama

from luthier.adapters.lora_building import create_lora
from luthier.adapters.lora_groups import lora_plus_groups
from luthier.adapters.soft_prompt import SoftPrompt
from luthier.data_model.lora import LoraConfig


def test_b_learns_faster_and_every_parameter_once() -> None:
    config = LoraConfig(rank=2, use_dora=True, modules_to_save=("norm",))
    adapter = create_lora(make_llama(), config, seed=1)
    others, factors_b = lora_plus_groups(adapter, learning_rate=0.5, ratio=16)
    assert (others["lr"], others["lr_factor"]) == (0.5, 1.0)
    assert (factors_b["lr"], factors_b["lr_factor"]) == (8.0, 16)
    names = {id(parameter): name for name, parameter in adapter.named_parameters()}
    assert all("lora_B" in names[id(p)] for p in factors_b["params"])
    grouped = [id(p) for group in (others, factors_b) for p in group["params"]]
    assert sorted(grouped) == sorted(names)
    torch.optim.AdamW([others, factors_b])


def test_an_adapter_without_b_has_one_group() -> None:
    prompt = SoftPrompt(torch.ones(2, 4), kind="causal", places=("decoder",))
    (group,) = lora_plus_groups(prompt, learning_rate=0.1, ratio=16)
    assert group["lr"] == 0.1
