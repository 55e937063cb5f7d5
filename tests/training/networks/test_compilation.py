"""Compiled layers give the losses and gradients of plain ones."""

from dataclasses import replace

import pytest
import torch
from fixtures.parallel_training import OPTIONS, RECORDS, make_lora
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.base import Adapter
from luthier.adapters.module_tree import own_module_tree
from luthier.errors import NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import collate
from luthier.training.data.examples import Example
from luthier.training.loop import tune
from luthier.training.networks.compilation import compile_layers
from luthier.training.networks.network import TrainingNetwork

#: torch compiles with parts of its own that it warns of.
QUIET = pytest.mark.filterwarnings("ignore")


def _loss_and_gradients(
    base: BaseModel, adapter: Adapter, *, is_compiled: bool
) -> list[torch.Tensor]:
    named = dict(adapter.named_parameters())
    network = TrainingNetwork(base, adapter, is_compiled=is_compiled)
    found = []
    for parameter in named.values():
        parameter.requires_grad_(True)
    for length in (5, 9, 4):  # Compiled once, for all of them.
        row = Example(1, tuple(range(3, 3 + length)), (-100, -100, *range(5, 3 + length)))
        batch = collate([row] * 2, pad_token_id=0, is_seq2seq=False, device=torch.device("cpu"))
        loss = network.loss_sum(batch)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        found += [loss.detach(), *(each for each in gradients if each is not None)]
    return found


# torch compiles with parts of its own that it calls deprecated.
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.slow
def test_a_training_network_computes_the_same_compiled(tiny_causal_base: BaseModel) -> None:
    adapter = make_lora(tiny_causal_base)
    plain = _loss_and_gradients(tiny_causal_base, adapter, is_compiled=False)
    compiled = _loss_and_gradients(tiny_causal_base, adapter, is_compiled=True)
    for found, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


# torch compiles with parts of its own that it calls deprecated.
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_all_layers_and_lengths_need_one_compilation(tiny_causal_base: BaseModel) -> None:
    plain, compiled = (own_module_tree(tiny_causal_base.model) for _ in range(2))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(compiled, backend="aot_eager")
    for length in (5, 9, 4):
        input_ids = torch.arange(3, 3 + length).repeat(2, 1)
        embeddings = [
            model.get_input_embeddings()(input_ids).detach().requires_grad_()
            for model in (plain, compiled)
        ]
        for model, each in zip((plain, compiled), embeddings, strict=True):
            model(inputs_embeds=each, use_cache=False).logits.logsumexp(-1).sum().backward()
        torch.testing.assert_close(embeddings[1].grad, embeddings[0].grad, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_cpu_without_compiler_is_refused(
    tiny_causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NotSupportedError, match=r"needs one of the compilers g\+\+, clang"):
        tune(
            tiny_causal_base,
            make_lora(tiny_causal_base),
            RECORDS,
            options=replace(OPTIONS, compile_model=True),
        )


def test_a_model_without_layers_of_a_kind_is_refused() -> None:
    class NoLayers(nn.Module):
        config = type("Config", (), {"model_type": "odd"})()
        device = torch.device("cuda")

    model: PreTrainedModel = NoLayers()  # type: ignore[assignment]
    with pytest.raises(NotSupportedError, match=r"'compile_model' goes layer by layer, .* 'odd'"):
        compile_layers(model)
