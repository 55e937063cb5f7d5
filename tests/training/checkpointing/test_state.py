"""Copies of a training's tensors."""

import torch

from luthier.training.checkpointing.state import copied


def test_copies_share_no_memory_and_are_contiguous() -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    copy = copied({"a": parameter, "b": parameter.T})
    with torch.no_grad():
        parameter.zero_()
    assert copy["a"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert copy["b"].is_contiguous()
    assert not copy["a"].requires_grad
