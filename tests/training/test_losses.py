"""Chunked cross-entropy against torch's own, value and gradients."""

import pytest
import torch

from luthier.training.losses import (
    cross_entropy_sum,
    projected_label_losses,
    projected_token_scores,
)


@pytest.mark.parametrize("chunk_numbers", [1, 40, 123, 10**6])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_weighted", [True, False])
def test_chunks_give_the_loss_and_gradients_of_all_logits_at_once(
    chunk_numbers: int, has_bias: bool, is_weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(20, generator=generator, dtype=torch.float64) if has_bias else None
    labels = torch.randint(20, (11,), generator=generator)
    weights = torch.rand(11, generator=generator) if is_weighted else None
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias) if tensor is not None]

    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = cross_entropy_sum(logits, labels, weights) * 0.3
    expected_gradients = torch.autograd.grad(expected, leaves)
    loss, _ = projected_label_losses(
        hidden, weight, bias, labels, weights, chunk_numbers=chunk_numbers
    )
    gradients = torch.autograd.grad(loss * 0.3, leaves)

    torch.testing.assert_close(loss * 0.3, expected, rtol=1e-6, atol=1e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(5, 4)
    loss, _ = projected_label_losses(hidden, weight, None, torch.tensor([0, 1, 2]))
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_without_gradients_only_the_loss_is_computed() -> None:
    with torch.no_grad():
        loss, _ = projected_label_losses(
            torch.zeros(2, 4), torch.zeros(5, 4), None, torch.tensor([0, 4])
        )
    assert loss.item() == pytest.approx(2 * torch.log(torch.tensor(5.0)).item())


def test_huge_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss, _ = projected_label_losses(hidden, torch.eye(2) * 10, None, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_weights_of_one_change_nothing() -> None:
    logits, labels = torch.randn(4, 9), torch.tensor([0, 3, 8, 1])
    torch.testing.assert_close(
        cross_entropy_sum(logits, labels, torch.ones(4)), cross_entropy_sum(logits, labels)
    )


@pytest.mark.parametrize("chunk_numbers", [1, 40, 10**6])
def test_token_scores_add_up_to_the_loss_and_say_which_token_is_first(chunk_numbers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(11, 6, generator=generator),
        torch.randn(20, 6, generator=generator),
    )
    labels = torch.randint(20, (11,), generator=generator)
    labels[3] = (hidden @ weight.T)[3].argmax()
    losses, choices = projected_token_scores(
        hidden, weight, None, labels, chunk_numbers=chunk_numbers
    )
    torch.testing.assert_close(losses.sum(), cross_entropy_sum(hidden @ weight.T, labels))
    assert choices.tolist() == (hidden @ weight.T).argmax(dim=1).tolist()
    assert choices[3] == labels[3]
