from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import pytest
import torch

from luthier.resources.shared_tensors import SharedTensors, map_tensors


def tensors() -> dict[str, torch.Tensor]:
    return {
        "contiguous": torch.randn(3, 5),
        "transposed": torch.randn(4, 6).T,
        "with_gaps": torch.arange(14)[::2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "empty": torch.empty(0, 3),
        "after_empty": torch.tensor(3.5),
        "half": torch.randn(7).to(torch.bfloat16),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("takes_over", [False, True])
def test_another_mapping_holds_the_same_numbers(takes_over: bool) -> None:
    given = tensors()
    before = {name: tensor.clone() for name, tensor in given.items()}
    shared = SharedTensors(given.items(), takes_over=takes_over)
    mapped = map_tensors(shared.file_descriptor, shared.places)
    for name, expected in before.items():
        assert torch.equal(mapped[name], expected), name
        assert torch.equal(given[name], expected), name
        assert mapped[name].dtype == expected.dtype
    assert mapped["transposed"].stride() == (1, 6)


def test_a_tensor_that_was_taken_over_is_the_one_that_others_map() -> None:
    tensor = torch.randn(3, 5)
    shared = SharedTensors([("one", tensor)], takes_over=True)
    tensor.add_(1)
    assert torch.equal(map_tensors(shared.file_descriptor, shared.places)["one"], tensor)


def test_a_tensor_that_was_copied_is_not() -> None:
    tensor = torch.randn(3, 5)
    shared = SharedTensors([("one", tensor)])
    tensor.add_(1)
    assert not torch.equal(map_tensors(shared.file_descriptor, shared.places)["one"], tensor)


def test_names_of_one_tensor_share_its_copy() -> None:
    tensor = torch.randn(3, 5)
    shared = SharedTensors([("one", tensor), ("tied", tensor), ("other", tensor.clone())])
    mapped = map_tensors(shared.file_descriptor, shared.places)
    assert mapped["one"] is mapped["tied"]
    assert mapped["one"] is not mapped["other"]
    assert os.fstat(shared.file_descriptor).st_size == 2 * 64


def test_the_memory_outlives_its_descriptor_and_the_descriptor_not_its_owner() -> None:
    tensor = torch.randn(3)
    shared = SharedTensors([("one", tensor)], takes_over=True)
    descriptor, expected = shared.file_descriptor, tensor.clone()
    del shared
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert torch.equal(tensor, expected)


def test_nobody_writes_to_what_another_process_holds() -> None:
    shared = SharedTensors([("one", torch.zeros(3))])
    program = (
        "import sys\n"
        "from luthier.resources.shared_tensors import TensorPlace, map_tensors\n"
        "places = {'one': TensorPlace(0, 'float32', (3,), (1,))}\n"
        "one = map_tensors(int(sys.argv[1]), places)['one']\n"
        "print(one.tolist(), flush=True)\n"
        "one.add_(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(shared.file_descriptor)],
        pass_fds=[shared.file_descriptor],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[0.0, 0.0, 0.0]\n"
    assert done.returncode == -signal.SIGSEGV
