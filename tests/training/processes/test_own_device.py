"""Where a process trains, and how many there may be."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import InvalidInputError
from luthier.modules import LoraTuning
from luthier.training.processes import own_device as module
from luthier.training.processes.own_device import own_device, require_gpus, require_processes
from luthier.training.processes.parallel import ProcessGroup


def test_a_process_alone_takes_the_device_it_is_told() -> None:
    assert own_device(None, default="cpu") == torch.device("cpu")
    assert own_device("cpu", default="auto") == torch.device("cpu")
    with pytest.raises(InvalidInputError, match="'device' 'nonsense'"):
        own_device("nonsense", default="cpu")


def test_each_of_several_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.device("cuda", 1)
    monkeypatch.setattr(module, "current_group", lambda: ProcessGroup(1, 2, own))
    monkeypatch.setattr(module, "parse_device", torch.device)
    assert own_device("cuda", default="cpu") == own
    assert own_device(None, default="cuda") == own
    assert own_device("cpu", default="cuda") == torch.device("cpu")
    with pytest.raises(InvalidInputError, match="'cuda:0' is one GPU, and there are 2 processes"):
        own_device("cuda:0", default="cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_gpus(2, torch.device("cuda"))
    require_gpus(64, torch.device("cpu"))
    with pytest.raises(InvalidInputError, match=r"'num_processes' is 3, but .* 2 GPUs"):
        require_gpus(3, torch.device("cuda"))


def test_processes_that_nobody_started_are_refused() -> None:
    require_processes(1)
    with pytest.raises(InvalidInputError, match="'num_processes' is 2, but this training has 1"):
        require_processes(2)


def test_a_call_from_python_refuses_them(tiny_causal_dir: object) -> None:
    rows = [{"input": "a", "output": "b"}]
    with pytest.raises(InvalidInputError, match="'num_processes' is 2"):
        LoraTuning.train(
            base_model=str(tiny_causal_dir),
            train_stream=rows,
            training_options={"num_processes": 2},
        )
