"""Quantised layers against bitsandbytes' own around the same weight."""

import copy
import sys
import threading

import bitsandbytes
import pytest
import torch
from torch import nn

from luthier.errors import NotSupportedError
from luthier.resources.quantised_layers import Int4Linear, Int8Linear, require_bitsandbytes

WORDS = ("int8", "nf4", "fp4")


def _float_layer(bias=True):
    torch.manual_seed(0)
    return nn.Linear(96, 80, bias=bias)


def _ours(layer, word):
    bias = None if layer.bias is None else layer.bias.detach()
    if word == "int8":
        return Int8Linear.of(layer.weight, bias)
    return Int4Linear.of(layer.weight, bias, quant_type=word)


def _theirs(layer, word):
    if word == "int8":
        made = bitsandbytes.nn.Linear8bitLt(96, 80, has_fp16_weights=False, threshold=0.0)
    else:
        made = bitsandbytes.nn.Linear4bit(96, 80, quant_type=word, compute_dtype=torch.float32)
    made.load_state_dict(layer.state_dict())
    # In training mode: elsewhere it rounds the input or packs its weights on some CPUs.
    return made.to("cpu").train()


@pytest.mark.parametrize("word", WORDS)
def test_output_and_gradient_are_those_of_bitsandbytes(word):
    layer = _float_layer()
    x = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(1))
    outputs, gradients = [], []
    for made in (_ours(layer, word), _theirs(layer, word)):
        given = x.clone().requires_grad_()
        output = made(given)
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append(given.grad)
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    assert (outputs[0] - layer(x)).abs().max() > 1e-4


@pytest.mark.parametrize("word", WORDS)
def test_the_dequantised_weight_is_what_is_multiplied_with(word):
    layer = _float_layer(bias=False)
    made = _ours(layer, word)
    weight = made.dequantised_weight()
    assert weight.shape == layer.weight.shape
    torch.testing.assert_close(made(torch.eye(96)).T, weight, atol=1e-6, rtol=1e-6)
    close = {"int8": 1e-3, "nf4": 0.03, "fp4": 0.03}[word]
    assert (weight - layer.weight).abs().max() < close
    assert made.weight.nbytes * (1 if word == "int8" else 2) == layer.weight.numel()


@pytest.mark.parametrize("word", WORDS)
def test_running_changes_nothing_whoever_runs_it(word):
    made = _ours(_float_layer(), word)
    before = copy.deepcopy({**dict(made.named_parameters()), **dict(made.named_buffers())})
    x = torch.randn(4, 96)
    with torch.no_grad():
        expected = made(x)
    found = []

    def run(*, is_training):
        made_input = x.clone().requires_grad_(is_training)
        with torch.set_grad_enabled(is_training):
            found.extend(made(made_input).detach() for _ in range(5))

    threads = [threading.Thread(target=run, kwargs={"is_training": each}) for each in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert all(torch.allclose(each, expected, atol=1e-5) for each in found)
    after = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("word", WORDS)
def test_scales_keep_their_precision_whatever_it_is_moved_to(word):
    made = _ours(_float_layer(), word)
    dtypes = {name: buffer.dtype for name, buffer in made.named_buffers()}
    weight = made.dequantised_weight()
    made.to(torch.bfloat16)
    assert {name: buffer.dtype for name, buffer in made.named_buffers()} == dtypes
    assert torch.equal(made.dequantised_weight(), weight)
    assert made(torch.randn(2, 96, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    require_bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(NotSupportedError, match=r"pip install 'luthier\[quantization\]'"):
        require_bitsandbytes()
