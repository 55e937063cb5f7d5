"""What PEFT makes of a base model, with the numbers that our side starts from."""

from __future__ import annotations

import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from luthier.adapters.module_tree import own_module_tree
from luthier.resources.base_model import BaseModel


def random_prompt(base_model: BaseModel, num_virtual_tokens: int, *, seed: int) -> torch.Tensor:
    """Virtual tokens as large as embeddings are, [P, D]."""
    generator = torch.Generator().manual_seed(seed)
    size = (num_virtual_tokens, base_model.hidden_size)
    return torch.randn(size, generator=generator) * base_model.embedding_weight.std()


def peft_lora(base_model: BaseModel, *, method: str, rank: int, alpha: int, seed: int) -> nn.Module:
    """A LoRA on layers of its own around the base's tensors.

    Args:
        base_model: Not changed.
        method: ``lora_qv`` or ``lora_all``.
        rank: R.
        alpha: Of the scaling.
        seed: Of the factors.

    Returns:
        PEFT's model.
    """
    names = ["q_proj", "v_proj"] if method == "lora_qv" else "all-linear"
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=names)
    return get_peft_model(own_module_tree(base_model.model), config)


def peft_prompt(base_model: BaseModel, prompt: torch.Tensor) -> nn.Module:
    """A soft prompt before layers of its own around the base's tensors.

    Args:
        base_model: Not changed.
        prompt: Virtual tokens, [P, D]; copied.

    Returns:
        PEFT's model.
    """
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompt))
    model = get_peft_model(own_module_tree(base_model.model), config)
    (weight,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        weight.copy_(prompt)
    return model
