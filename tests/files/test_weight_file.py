"""Weights of a whole model from one file, whoever wrote it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from luthier.errors import ArtifactError, InvalidInputError, NotFoundError, UnsafeWeightsError
from luthier.files.weight_file import read_weights

WEIGHTS = {"model.a.weight": torch.arange(6.0).view(2, 3), "lm_head.weight": torch.ones(2)}


def _same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items()
    )


@pytest.mark.parametrize("wrapper", ["", "backbone.", "module.backbone."])
@pytest.mark.parametrize("place", ["", "model", "state_dict"])
def test_what_torch_saved_is_read_with_and_without_wrappers(
    wrapper: str, place: str, tmp_path: Path
) -> None:
    state = {wrapper + name: tensor for name, tensor in WEIGHTS.items()}
    torch.save({place: state, "epoch": 3} if place else state, tmp_path / "checkpoint.pth")
    assert _same(read_weights(tmp_path / "checkpoint.pth"))


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "parameters.safetensors")
    assert _same(read_weights(tmp_path / "parameters.safetensors"))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.pth").write_bytes(pickle.dumps(WEIGHTS))
    with pytest.raises(UnsafeWeightsError, match=r"'old.pth' is a plain pickle"):
        read_weights(tmp_path / "old.pth")
    torch.save({"model": WEIGHTS, "path": Path("x")}, tmp_path / "rich.pth")
    with pytest.raises(UnsafeWeightsError):
        read_weights(tmp_path / "rich.pth")


def test_what_holds_no_weights_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        read_weights(tmp_path / "missing.pth")
    with pytest.raises(InvalidInputError, match="is a folder"):
        read_weights(tmp_path)
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.pth")
    with pytest.raises(ArtifactError, match="must hold a dictionary of tensors"):
        read_weights(tmp_path / "numbers.pth")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(ArtifactError, match="holds no tensors"):
        read_weights(tmp_path / "empty.pth")
    save_file({"a": torch.tensor([torch.nan])}, tmp_path / "nan.safetensors")
    with pytest.raises(ArtifactError, match=r"'a' holds NaN"):
        read_weights(tmp_path / "nan.safetensors")
