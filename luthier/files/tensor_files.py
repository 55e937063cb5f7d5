"""Tensor files that strangers wrote, read with every length, shape and offset checked."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch

from luthier.errors import ArtifactError
from luthier.files.torch_files import MAX_ADAPTER_BYTES, read_torch_file, sizes_of

MAX_HEADER_BYTES = 50_000_000

_SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip


def read_tensors(path: Path, *, max_bytes: int = MAX_ADAPTER_BYTES) -> dict[str, torch.Tensor]:
    """Read named tensors from a ``.safetensors`` file or a torch file, by suffix.

    Args:
        path: The file.
        max_bytes: Larger files are refused.

    Returns:
        Tensors on the CPU by name.

    Raises:
        UnsafeWeightsError: If the file asks for anything but tensors.
        ArtifactError: If it is corrupt, truncated or larger than ``max_bytes``.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path, max_bytes=max_bytes)
    return read_torch_file(path, max_bytes=max_bytes)


def read_safetensors(path: Path, *, max_bytes: int = MAX_ADAPTER_BYTES) -> dict[str, torch.Tensor]:
    """Read a safetensors file whole: what was checked is what is parsed.

    Args:
        path: The file.
        max_bytes: Larger files are refused.

    Returns:
        Tensors on the CPU by name.

    Raises:
        ArtifactError: If it is corrupt, truncated or larger than ``max_bytes``.
    """
    content = _read_file(path, max_bytes=max_bytes)
    _check_header(content[: 8 + MAX_HEADER_BYTES], num_bytes=len(content), name=path.name)
    try:
        tensors: dict[str, torch.Tensor] = safetensors_torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path.name!r} is not a safetensors file: {error}") from error
    return tensors


def check_safetensors_header(path: Path) -> None:
    """Check a safetensors file without reading its data: for files that are mapped, not read.

    Args:
        path: The file.

    Raises:
        ArtifactError: If lengths, shapes, types and offsets do not fit each other and the file.
    """
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            start += file.read(min(length, MAX_HEADER_BYTES))
    except OSError as error:
        raise ArtifactError(f"{path.name!r} cannot be read: {error.strerror}") from error
    _check_header(start, num_bytes=num_bytes, name=path.name)


def map_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Map a safetensors file: nothing is read before it is looked at, and nobody's memory grows.

    Args:
        path: The file; others may map it, too.

    Returns:
        Tensors on the CPU by name, whose bytes may stand at odd places: copy them before anything
        is computed.

    Raises:
        ArtifactError: If lengths, shapes, types and offsets do not fit each other and the file.
    """
    check_safetensors_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path.name!r} is not a safetensors file: {error}") from error


def require_finite(tensor: torch.Tensor, *, what: str) -> None:
    """Refuse NaN and infinities.

    Args:
        tensor: Of floating point.
        what: Its name for the message.

    Raises:
        ArtifactError: Naming ``what``.
    """
    if not torch.isfinite(tensor).all():
        raise ArtifactError(f"{what} holds NaN or infinite numbers")


def _read_file(path: Path, *, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ArtifactError(f"{path.name!r} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise ArtifactError(f"{path.name!r} is larger than {max_bytes} bytes")
    return content


# ── safetensors ─────────────────────────────────────────────────────────────────────────────────
#   8 bytes: N, little endian │ N bytes: JSON {name: {dtype, shape, data_offsets}} │ data


def _check_header(start: bytes, *, num_bytes: int, name: str) -> None:
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 2 <= length <= min(num_bytes - 8, MAX_HEADER_BYTES):
        raise ArtifactError(f"{name!r} is not a safetensors file: its header length is impossible")
    try:
        header = json.loads(start[8 : 8 + length], object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name!r} is not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{name!r} is not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    spans = sorted(_span_of(key, entry, name=name) for key, entry in header.items())
    position = 0
    for begin, end in spans:
        if begin != position:
            raise ArtifactError(f"{name!r}: the tensors overlap or leave holes at byte {position}")
        position = end
    if position != num_bytes - 8 - length:
        raise ArtifactError(
            f"{name!r} is truncated or padded: its header promises {position} bytes of data, "
            f"the file holds {num_bytes - 8 - length}"
        )


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice in the header")
    return result


def _span_of(key: str, entry: object, *, name: str) -> tuple[int, int]:
    try:
        if not isinstance(entry, dict):
            raise TypeError
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        bits = _SAFETENSORS_BITS[entry["dtype"]] * math.prod(sizes_of(shape))
        (begin, end) = sizes_of([begin, end])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{name!r}: the header entry of {key[:80]!r} is malformed") from error
    if (end - begin) * 8 != bits:
        raise ArtifactError(
            f"{name!r}: {key[:80]!r} has {end - begin} bytes, which is not {entry['dtype']} {shape}"
        )
    return begin, end
