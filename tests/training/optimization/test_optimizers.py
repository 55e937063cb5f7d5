"""Optimizers against torch's own."""

from collections.abc import Callable

import pytest
import torch

from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import ArtifactError
from luthier.training.optimization.optimizers import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)


def test_norms_and_biases_do_not_decay() -> None:
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    norm = torch.nn.Parameter(torch.ones(2))
    options = TrainingOptions(learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer([("matrix", matrix), ("norm", norm)], options)
    matrix.grad, norm.grad = torch.zeros_like(matrix), torch.zeros_like(norm)
    optimizer.step()
    torch.testing.assert_close(matrix.data, torch.full((2, 2), 0.95))
    torch.testing.assert_close(norm.data, torch.ones(2))


def test_the_optimizer_is_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(3, 3, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    options = TrainingOptions(learning_rate=0.1, weight_decay=0.01)
    optimizer = build_optimizer([("p", ours)], options)
    reference = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    for rate in (0.1, 0.05, 0.02):
        gradient = torch.randn(3, 3, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        set_learning_rate(optimizer, rate)
        set_learning_rate(reference, rate)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_a_factor_speeds_up_its_parameters_alone() -> None:
    parameters = [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in ("a", "b")]
    options = TrainingOptions(learning_rate=0.1, weight_decay=0.0)
    optimizer = build_optimizer(
        parameters, options, learning_rate_factor=lambda name: 16.0 if name == "b" else 1.0
    )
    set_learning_rate(optimizer, 0.01)
    for _, parameter in parameters:
        parameter.grad = torch.ones(2, 2)
    optimizer.step()
    slow, fast = (parameter.detach() for _, parameter in parameters)
    torch.testing.assert_close(fast, 16 * slow)
    torch.testing.assert_close(slow, torch.full((2, 2), -0.01))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adam", lambda p: torch.optim.Adam([p], lr=0.1, weight_decay=0.01)),
        ("adadelta", lambda p: torch.optim.Adadelta([p], lr=0.1, eps=1e-8, weight_decay=0.01)),
        (
            "rmsprop",
            lambda p: torch.optim.RMSprop(
                [p], lr=0.1, alpha=0.9, eps=1e-8, momentum=0.9, weight_decay=0.01
            ),
        ),
        (
            "sgd",
            lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
    ],
)
def test_the_other_optimizers_are_torchs(
    name: str, reference: Callable[[torch.nn.Parameter], torch.optim.Optimizer]
) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(3, 3, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    options = TrainingOptions(learning_rate=0.1, weight_decay=0.01, optimizer=name)
    optimizers = build_optimizer([("p", ours)], options), reference(theirs)
    for _ in range(3):
        gradient = torch.randn(3, 3, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_numbers_in_the_optimizers_state_come_back_as_numbers() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter] = {"step": 3, "buffer": torch.ones(2)}
    tensors = optimizer_tensors(optimizer, {"p": parameter})
    fresh = torch.optim.SGD([parameter], lr=0.1)
    restore_optimizer(fresh, {"p": parameter}, tensors)
    assert fresh.state[parameter]["step"] == 3
    assert isinstance(fresh.state[parameter]["step"], int)
    with pytest.raises(ArtifactError, match="'q::step' is of nothing that is learned"):
        restore_optimizer(fresh, {"p": parameter}, {"q::step": torch.ones(1)})
