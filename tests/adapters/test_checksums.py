from __future__ import annotations

import pytest
import torch

from luthier.adapters.checksums import checksums_of, versions_of


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_any_change_is_seen_however_it_was_made(dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 13).reshape(3, 4).to(dtype)
    others = torch.ones(2)
    before = checksums_of([others, tensor])
    assert checksums_of([others, tensor.clone()]) == before
    tensor.data[1, 2] = 0
    seen = {before, checksums_of([others, tensor])}
    tensor.data[1, 2] = 7
    assert checksums_of([others, tensor]) == before
    tensor.data = tensor.flip(0)
    seen.add(checksums_of([others, tensor]))
    seen.add(checksums_of([others, tensor.flatten()]))
    seen.add(checksums_of([tensor, others]))
    assert len(seen) == 5


def test_parameters_of_fused_optimizers_are_seen_to_change() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    before = checksums_of([parameter])
    parameter.grad = torch.ones(4)
    torch.optim.AdamW([parameter], fused=True).step()
    assert checksums_of([parameter]) != before


def test_tensors_of_inference_mode_and_strided_ones_are_taken() -> None:
    with torch.inference_mode():
        made = torch.ones(3, 4)
    assert checksums_of([made]) == checksums_of([torch.ones(4, 3).T])


def test_changes_in_place_are_counted() -> None:
    tensors = [torch.ones(2), torch.ones(3)]
    before = versions_of(*tensors)
    assert versions_of(*tensors) == before
    tensors[1].add_(1)
    assert versions_of(*tensors) != before


def test_nobody_counts_in_inference_mode() -> None:
    with torch.inference_mode():
        made = torch.ones(2)
    assert versions_of(torch.ones(2), made) is None
