"""Statistics batch by batch against those of all numbers at once."""

from __future__ import annotations

import pytest
import torch
from peft.utils.incremental_pca import IncrementalPCA

from luthier.adapters.lora.starts.statistics import (
    InputComponents,
    InputCovariance,
    WeightGradient,
)


def _inputs(num: int, *, seed: int, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(4, 0.2, size)
    return torch.randn(num, size, generator=generator) * spread + spread


def test_components_of_one_batch_are_its_principal_ones() -> None:
    inputs = _inputs(40, seed=1)
    found = InputComponents(3)
    for part in inputs.split(7):
        found.add(part)
    assert not found.is_fitted
    found.end_batch()
    centred = inputs - inputs.mean(dim=0)
    _, s, vh = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(found.components.abs(), vh[:3].abs(), atol=1e-2, rtol=0)
    torch.testing.assert_close(found.singular_values, s[:3], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        found.explained_share, s[:3].square() / s.square().sum(), atol=1e-4, rtol=1e-4
    )


def test_components_batch_by_batch_are_those_that_peft_finds() -> None:
    found, theirs = InputComponents(6), IncrementalPCA(n_components=6, lowrank=False)
    for seed in range(4):
        inputs = _inputs(30, seed=seed)
        theirs.partial_fit(inputs)
        found.add(inputs)
        found.end_batch()
    components = theirs.components_.float()
    torch.testing.assert_close(found.components, components, atol=1e-2, rtol=0)
    torch.testing.assert_close(
        found.explained_share, theirs.explained_variance_ratio_.float(), atol=1e-5, rtol=1e-4
    )
    assert found.num_seen == 120


def test_inputs_that_are_too_few_wait_for_the_next_batch() -> None:
    found, at_once = InputComponents(4), InputComponents(4)
    inputs = _inputs(8, seed=3)
    for part in (inputs[:3], inputs[3:]):
        found.add(part)
        found.end_batch()
    at_once.add(inputs)
    at_once.end_batch()
    torch.testing.assert_close(found.components, at_once.components)
    found.add(_inputs(2, seed=4))
    found.end_batch()
    assert (found.num_seen, found.num_waiting) == (8, 2)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_covariance_weighs_rows_alike_whatever_their_scale(scale: float) -> None:
    rows = [_inputs(5, seed=1), _inputs(9, seed=2)]
    found = InputCovariance()
    for row in rows:
        found.add(row * scale)
    expected = sum((row / row.max()).T @ (row / row.max()) for row in rows) / 2
    torch.testing.assert_close(found.mean, expected)


def test_a_row_of_zeros_is_no_division_by_zero() -> None:
    found = InputCovariance()
    found.add(torch.zeros(3, 4))
    assert torch.equal(found.mean, torch.zeros(4, 4))


def test_the_gradient_of_a_weight_is_what_autograd_gives() -> None:
    layer, total = torch.nn.Linear(4, 3), WeightGradient()
    assert total.sum is None
    for seed in (1, 2):
        inputs = _inputs(5, seed=seed, size=4)
        output = layer(inputs)
        output.register_hook(lambda grad, inputs=inputs: total.add(inputs, grad))
        output.square().sum().backward()
    torch.testing.assert_close(total.sum, layer.weight.grad)
