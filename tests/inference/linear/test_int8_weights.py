from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.data_model.sampling import SamplingParams
from luthier.errors import ConfigError
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.linear import int8_weights
from luthier.inference.linear.int8_weights import Int8Linear, multiplies_int8, use_int8_weights
from luthier.inference.options import EngineOptions
from luthier.resources.base_model import BaseModel
from tests.fixtures.lora_models import make_llama

needs_vnni = pytest.mark.skipif(not multiplies_int8(), reason="this CPU has no int8 products")


def by_definition(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Products of what is left after rounding, in double precision."""
    x, weight = x.double(), weight.double()
    sizes, scales = x.abs().amax(-1, keepdim=True), weight.abs().amax(1)
    products = (x / sizes * 127).round() @ (weight / scales[:, None] * 127).round().T
    return products * sizes / 127 * scales / 127


@needs_vnni
@pytest.mark.parametrize("num_inputs", [1, 31, 64, 96, 577])
@pytest.mark.parametrize("num_outputs", [1, 4, 13, 64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_those_of_rounded_numbers(
    num_inputs: int, num_outputs: int, has_bias: bool
) -> None:
    torch.manual_seed(num_inputs)
    base = nn.Linear(num_inputs, num_outputs, bias=has_bias).requires_grad_(False)
    layer = Int8Linear(base)
    for num_tokens in (0, 1, 2, 5, 6, 7, 12, 13, 40):
        x = torch.randn(1, num_tokens, num_inputs) * torch.logspace(-3, 3, num_tokens)[:, None]
        expected = by_definition(x, base.weight) + (base.bias.double() if has_bias else 0.0)
        got = layer(x).double()
        # A number halfway between two steps may be rounded to either.
        assert (got - expected).norm() <= 2e-3 * expected.norm()
        assert got.shape == expected.shape


@needs_vnni
def test_rounding_changes_little() -> None:
    torch.manual_seed(1)
    base = nn.Linear(96, 64).requires_grad_(False)
    x = torch.randn(7, 96)
    assert (Int8Linear(base)(x) - base(x)).norm() < 2e-2 * base(x).norm()


@needs_vnni
@pytest.mark.parametrize(
    "x", [torch.randn(96), torch.randn(96, 6).t(), torch.randn(4, 192)[:, ::2]]
)
def test_any_shape_and_order_of_inputs(x: torch.Tensor) -> None:
    layer = Int8Linear(nn.Linear(96, 64).requires_grad_(False))
    assert torch.equal(layer(x), layer(x.contiguous().view(-1, 96)).view(*x.shape[:-1], 64))


@needs_vnni
def test_what_the_kernel_cannot_read_goes_the_layers_own_way() -> None:
    base = nn.Linear(96, 64).requires_grad_(False)
    layer, x = Int8Linear(base), torch.randn(3, 96, requires_grad=True)
    (given,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(given[0], base.weight.sum(0))
    for other in (torch.randn(3, 48), torch.randn(2, 192), torch.randn(3, 96).double()):
        with pytest.raises(RuntimeError, match=r"shapes|dtype"):
            layer(other)


@needs_vnni
def test_several_threads_give_the_same_bits() -> None:
    layer = Int8Linear(nn.Linear(96, 203).requires_grad_(False))
    x, before = torch.randn(29, 96), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = layer(x)
        torch.set_num_threads(3)
        assert torch.equal(layer(x), alone)
    finally:
        torch.set_num_threads(before)


@needs_vnni
def test_a_row_does_not_depend_on_those_beside_it() -> None:
    torch.manual_seed(2)
    layer = Int8Linear(nn.Linear(96, 64).requires_grad_(False))
    row, others = torch.randn(1, 96), torch.randn(5, 96) * 100
    others[1], others[2, 3], others[3, 95] = 0.0, torch.nan, -torch.inf
    together = layer(torch.cat([others[:3], row, others[3:]]))
    assert torch.equal(together[3:4], layer(row))
    assert torch.equal(together[1], layer.bias)
    assert together[[2, 4]].isnan().all()
    assert together[5].isfinite().all()


@needs_vnni
def test_an_engine_with_int8_weights_says_about_the_same(causal_base: BaseModel) -> None:
    before = {name: each.clone() for name, each in causal_base.model.named_parameters()}
    sampling = SamplingParams(max_new_tokens=1, generated_tokens=True, token_logprobs=True)
    logprobs = []
    for weights in ("float", "int8"):
        engine = BatchedEngine(causal_base, EngineOptions(weights=weights))
        streams = [
            engine.submit(GenerationRequest(tuple(range(5, 9 + n)), sampling)) for n in range(6)
        ]
        tokens = [token for stream in streams for chunk in stream for token in chunk.tokens]
        logprobs.append([token.logprob for token in tokens])
        engine.close()
    assert len(logprobs[0]) == 6
    assert logprobs[0] != logprobs[1]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=0.3)
    after = dict(causal_base.model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before)


@needs_vnni
def test_logits_stay_in_the_models_precision() -> None:
    model = make_llama()
    num_linear = sum(isinstance(layer, nn.Linear) for layer in model.modules())
    assert use_int8_weights(model) == num_linear - 1
    assert type(model.get_output_embeddings()) is nn.Linear


def test_a_cpu_without_such_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_weights, "multiplies_int8", lambda: False)
    with pytest.raises(ConfigError, match="VNNI"):
        use_int8_weights(make_llama())


def test_no_adapter_is_merged_into_float_weights() -> None:
    options = EngineOptions(weights="int8", merge_after_steps=8, max_merged_bytes=2**30)
    assert options.merging.after_steps == 0


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="'int4'"):
        EngineOptions(weights="int4")
