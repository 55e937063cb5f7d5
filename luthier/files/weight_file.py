"""The weights of a whole model in one file, as trainings write them."""

from __future__ import annotations

from pathlib import Path

import torch

from luthier.errors import ArtifactError, InvalidInputError, NotFoundError
from luthier.files.tensor_files import read_safetensors, require_finite
from luthier.files.torch_files import read_torch_state

#: What wrappers put before a model's own names: H2O LLM Studio, and torch's data parallelism.
_WRAPPERS = ("", "backbone.", "module.", "module.backbone.")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read named tensors from a safetensors file or from what ``torch.save`` made of a state.

    Args:
        path: A file; ``.safetensors`` or any other suffix for torch's.

    Returns:
        Tensors on the CPU, without the prefix that a wrapper gave to all names.

    Raises:
        NotFoundError: If there is no such file.
        InvalidInputError: If it is a folder.
        UnsafeWeightsError: If it asks for anything but tensors.
        ArtifactError: If it is corrupt, empty, or holds NaN.
    """
    if path.is_dir():
        raise InvalidInputError(
            f"{path.name!r} is a folder; a whole model is named as 'general.base_model'"
        )
    if not path.is_file():
        raise NotFoundError(f"there is no file {str(path)[:200]!r} with weights")
    is_safe = path.suffix == ".safetensors"
    size = path.stat().st_size
    tensors = read_safetensors(path, max_bytes=size) if is_safe else read_torch_state(path)
    if not tensors:
        raise ArtifactError(f"{path.name!r} holds no tensors")
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            require_finite(tensor, what=f"{path.name!r}: {name[:80]!r}")
    fitting = [each for each in _WRAPPERS if all(name.startswith(each) for name in tensors)]
    wrapper = max(fitting, key=len)
    return {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
