"""Convert a folder with pickled weights to safetensors, reading tensors and nothing else.

    python -m luthier.resources.convert_weights OLD_FOLDER NEW_FOLDER

Works for base models (``pytorch_model*.bin``) and adapters (``adapter_model.bin``).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from luthier.errors import ArtifactError, LuthierError
from luthier.files.atomic_folder import write_folder_atomically
from luthier.files.torch_files import read_torch_file

_WEIGHTS = {"pytorch_model": "model.safetensors", "adapter_model": "adapter_model.safetensors"}
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.md")


def convert_weights(old: Path, new: Path) -> None:
    """Write a copy of ``old`` at ``new`` whose weights are safetensors. Costs the weights' memory.

    Args:
        old: Folder of a base model or an adapter.
        new: Where the copy shall be.

    Raises:
        ArtifactError: If ``old`` holds no pickled weights, or they are corrupt.
        UnsafeWeightsError: If they ask for anything but tensors.
        ConflictError: If ``new`` exists.
    """
    with write_folder_atomically(new) as partial:
        converted = [_convert(old, stem, partial / name) for stem, name in _WEIGHTS.items()]
        if not any(converted):
            raise ArtifactError(
                f"{old.name!r} holds neither pytorch_model*.bin nor adapter_model.bin"
            )
        for pattern in _COPIED:
            for path in old.glob(pattern):
                if not path.name.endswith(".index.json"):
                    shutil.copyfile(path, partial / path.name)


def _convert(old: Path, stem: str, target: Path) -> bool:
    state: dict[str, torch.Tensor] = {}
    for path in sorted(old.glob(f"{stem}*.bin")):
        state.update(read_torch_file(path))
    if state:
        # safetensors wants every tensor to own its memory; tied weights come twice.
        owned = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        save_file(owned, target, metadata={"format": "pt"})
    return bool(state)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the process with a message if it fails."""
    parser = argparse.ArgumentParser(prog="luthier.resources.convert_weights", description=__doc__)
    parser.add_argument("old_folder", type=Path)
    parser.add_argument("new_folder", type=Path)
    folders = parser.parse_args(arguments)
    try:
        convert_weights(folders.old_folder, folders.new_folder)
    except LuthierError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
