"""Full fine-tuning in shares: what each process holds, and what comes out and into checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.sharded_memory import load, make_base, train
from safetensors.torch import load_file

from luthier.training.checkpointing.checkpoints import CHECKPOINTS_FOLDER, list_checkpoints
from luthier.training.checkpointing.gathered import (
    SharedOut,
    give_shares,
    is_shared_out,
    write_tensors,
)
from luthier.training.processes.launching import launch


def test_two_processes_hold_their_shares_and_learn_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder, run_folder = make_base(tmp_path / "base"), tmp_path / "run"
    base = load(folder)
    whole = sum(each.numel() * each.element_size() for each in base.model.parameters())
    before = [float(each.double().sum()) for each in base.model.parameters()]
    alone = train(base, is_shared_out=False, run_folder=None)

    request = {"base": str(folder), "run_folder": str(run_folder)}
    answer = launch("fixtures.sharded_memory", request, num_processes=2)
    main, other = answer["processes"]
    for each in (main, other):
        assert each["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert each["base"] == before
    assert main["sums"] == pytest.approx(alone["sums"], abs=1e-2)
    # Half of the weights and half of the gradients are one whole; what is imported and borrowed
    # comes on top, and in the end all that was learned in the main one. Copies, in the adapter or
    # in a checkpoint, would each be one more.
    assert other["bytes_added"] < 2.6 * whole
    assert main["bytes_added"] < 2.9 * whole

    # What is gone on from stays in its files: read in, it would be one whole more (2.3 and 2.6).
    for each, whole_run in zip(answer["resumed"], (main, other), strict=True):
        assert each["losses"] == whole_run["losses"]
        assert each["sums"] == whole_run["sums"]
    assert max(each["bytes_added"] for each in answer["resumed"]) < 1.9 * whole

    *_, checkpoint = list_checkpoints(run_folder / CHECKPOINTS_FOLDER).values()
    saved = load_file(checkpoint / "parameters.safetensors")
    assert [float(each.double().sum()) for each in saved.values()] == pytest.approx(
        main["sums"], abs=1e-2
    )


def test_a_file_that_is_written_tensor_by_tensor_is_read_as_any_other(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "empty": torch.zeros(0, 2),
        "half": torch.randn(7).to(torch.bfloat16),
        "count": torch.tensor(12),
        "flags": torch.tensor([True, False]),
        "turned": torch.randn(4, 6).T,
    }
    assert not is_shared_out(tensors)
    shared = SharedOut(tensors)
    give_shares(shared)
    write_tensors(shared, tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
