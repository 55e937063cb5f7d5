from __future__ import annotations

import torch
from fixtures.lora_models import make_inputs, make_llama

from luthier.adapters.module_tree import own_module_tree


def test_layers_are_copied_and_tensors_shared() -> None:
    model = make_llama(tie_word_embeddings=True)
    tree = own_module_tree(model)
    theirs, ours = dict(model.named_parameters()), dict(tree.named_parameters())
    assert all(ours[name] is parameter for name, parameter in theirs.items())
    assert all(layer is not tree.get_submodule(n) for n, layer in model.named_modules())
    tree.train()
    tree.model.layers[0].self_attn = torch.nn.Identity()
    assert not model.training
    inputs = make_inputs(model)
    assert torch.equal(model(**inputs).logits, own_module_tree(model)(**inputs).logits)
