"""The zip files of ``torch.save``, read without unpickling.

    <prefix>/data.pkl     the structure      <prefix>/data/<key>     the bytes of one storage

``torch.load`` runs a pickle machine whose restrictions were broken before (CVE-2025-32434). The
machine below knows the thirty opcodes that a dictionary of tensors needs and can build nothing
but dictionaries, lists, tuples, numbers, texts and tensors. Whatever else a file asks for ends
with ``UnsafeWeightsError``; no name in it is ever imported.
"""

from __future__ import annotations

import math
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.errors import ArtifactError, LuthierError, UnsafeWeightsError

MAX_ADAPTER_BYTES = 2**31
MAX_PICKLE_BYTES = 16_000_000
#: About sixty describe one tensor.
MAX_OPCODES = 1_000_000
MAX_ZIP_ENTRIES = 100_000

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_torch_file(path: Path, *, max_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """Read a file that ``torch.save`` made of a flat dictionary of tensors.

    Args:
        path: The file.
        max_bytes: Larger files are refused; None for no limit.

    Returns:
        Tensors on the CPU by name; none requires a gradient. Those that shared memory still do.

    Raises:
        UnsafeWeightsError: If it asks for anything but tensors, or is of the old pickled format.
        ArtifactError: If it is corrupt, truncated, too large, or holds something else.
    """
    content = _read_torch_zip(path, max_bytes=max_bytes)
    if isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        return content
    raise ArtifactError(f"{path.name!r} must hold a dictionary of tensors")


def read_torch_state(path: Path, *, max_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """Read the state of a model that a training saved, alone or beside other things.

    Args:
        path: The file.
        max_bytes: Larger files are refused; None for no limit.

    Returns:
        Tensors by name: all that the file holds, or what it has under ``model`` or ``state_dict``.

    Raises:
        UnsafeWeightsError: As ``read_torch_file``.
        ArtifactError: As ``read_torch_file``.
    """
    content = _read_torch_zip(path, max_bytes=max_bytes)
    candidates = [content]
    if isinstance(content, dict):
        candidates += [content.get("model"), content.get("state_dict")]
    for candidate in candidates:
        if isinstance(candidate, dict) and all(
            isinstance(key, str) and isinstance(value, torch.Tensor)
            for key, value in candidate.items()
        ):
            return candidate
    raise ArtifactError(
        f"{path.name!r} must hold a dictionary of tensors, or have one under 'model' or "
        "'state_dict'"
    )


def read_torch_tensor(path: Path, *, max_bytes: int = MAX_ADAPTER_BYTES) -> torch.Tensor:
    """Read a file that ``torch.save`` made of one tensor.

    Args:
        path: The file.
        max_bytes: Larger files are refused.

    Returns:
        The tensor, on the CPU; it requires no gradient.

    Raises:
        UnsafeWeightsError: As ``read_torch_file``.
        ArtifactError: As ``read_torch_file``.
    """
    content = _read_torch_zip(path, max_bytes=max_bytes)
    if isinstance(content, torch.Tensor):
        return content
    raise ArtifactError(f"{path.name!r} must hold one tensor")


@dataclass(frozen=True)
class _Global:
    """A name that a pickle mentions. It is compared with the names below and never imported."""

    name: str


@dataclass(frozen=True)
class _Mark:
    """The bottom of the items that the next collecting opcode takes."""


_ORDERED_DICT = _Global("collections.OrderedDict")
_REBUILD_TENSOR = _Global("torch._utils._rebuild_tensor_v2")
_REBUILD_PARAMETER = _Global("torch._utils._rebuild_parameter")
_STORAGES = {_Global(f"torch.{word}"): dtype for word, dtype in _STORAGE_DTYPES.items()}
_KNOWN_GLOBALS = {_ORDERED_DICT, _REBUILD_TENSOR, _REBUILD_PARAMETER, *_STORAGES}
_CONSTANTS = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _Mark(),
}  # fmt: skip
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
)


def _read_torch_zip(path: Path, *, max_bytes: int | None) -> object:
    try:
        num_bytes = path.stat().st_size
        if max_bytes is not None and num_bytes > max_bytes:
            raise ArtifactError(f"{path.name!r} is larger than {max_bytes} bytes")
        with path.open("rb") as file:
            magic = file.read(4)
        if magic[:1] == b"\x80" or magic[:2] in (b"(d", b"c_", b"cp", b"co"):
            raise UnsafeWeightsError(
                f"{path.name!r} is a plain pickle, which can run code; only safetensors and the "
                "zip files of torch.save are read"
            )
        if magic != b"PK\x03\x04":
            raise ArtifactError(f"{path.name!r} is not a file of torch.save")
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive, name=path.name, num_bytes=num_bytes).read()
    except OSError as error:
        raise ArtifactError(f"{path.name!r} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, struct.error) as error:
        raise ArtifactError(f"{path.name!r} is truncated or corrupt: {error}") from error


class _Archive:
    """One torch file: its storages, read once each, and the structure around them."""

    def __init__(self, archive: zipfile.ZipFile, *, name: str, num_bytes: int) -> None:
        self._archive = archive
        self._name = name
        self._storages: dict[str, torch.Tensor] = {}
        entries = archive.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        stored = all(
            entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            for entry in entries
        )
        if (
            len(entries) > MAX_ZIP_ENTRIES
            or len(self._entries) != len(entries)
            or not stored
            or sum(entry.file_size for entry in entries) > num_bytes
        ):
            # torch.save never compresses, so nothing may grow when it is read.
            raise ArtifactError(f"{name!r} is not a zip file as torch.save writes it")
        pickles = [key for key in self._entries if key.count("/") == 1 and key[-9:] == "/data.pkl"]
        if len(pickles) != 1:
            raise ArtifactError(f"{name!r} holds {len(pickles)} times 'data.pkl', must be once")
        self._prefix = pickles[0][: -len("data.pkl")]
        byte_order = self._prefix + "byteorder"
        if byte_order in self._entries and archive.read(byte_order) != sys.byteorder.encode():
            raise ArtifactError(f"{name!r} was written on a machine of the other byte order")

    def read(self) -> object:
        """The object in ``data.pkl``, made of nothing but tensors, texts, numbers, containers."""
        entry = self._entries[self._prefix + "data.pkl"]
        if entry.file_size > MAX_PICKLE_BYTES:
            raise ArtifactError(f"{self._name!r}: data.pkl exceeds {MAX_PICKLE_BYTES} bytes")
        try:
            return _Machine(self._storage, name=self._name).run(self._archive.read(entry))
        except LuthierError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{self._name!r}: its structure is corrupt") from error

    def _storage(self, persistent_id: object) -> torch.Tensor:
        if not isinstance(persistent_id, tuple) or persistent_id[0] != "storage":
            raise ValueError("not a storage")
        _, kind, key, _, num_elements = persistent_id
        # The type is checked before it is hashed: hashing a deeply nested tuple ends the process.
        if not isinstance(key, str) or not isinstance(kind, _Global):
            raise ValueError("not the key of a storage")
        dtype = _STORAGES[kind]
        if key not in self._storages:
            content = bytearray(self._archive.read(self._entries[f"{self._prefix}data/{key}"]))
            self._storages[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        storage = self._storages[key]
        if storage.numel() != num_elements or storage.dtype != dtype:
            raise ValueError("storage of another length or type")
        return storage


class _Machine:
    """Runs the opcodes of a pickle that describes tensors; refuses every other one."""

    def __init__(self, load_storage: Callable[[object], torch.Tensor], *, name: str) -> None:
        self._load_storage = load_storage
        self._name = name
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def run(self, program: bytes) -> object:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if count >= MAX_OPCODES:
                raise ValueError("too many opcodes")
            if opcode.name == "STOP":
                (result,) = self._stack
                return result
            self._step(opcode.name, argument)
        raise ValueError("no STOP")

    def _step(self, opcode: str, argument: object) -> None:
        stack = self._stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode == "EMPTY_DICT":
            stack.append({})
        elif opcode == "EMPTY_LIST":
            stack.append([])
        elif opcode in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = len(self._memo) if argument is None else argument
            self._memo[key] = stack[-1]  # type: ignore[index]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])  # type: ignore[index]
        elif opcode in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(opcode.removeprefix("TUPLE"))))
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._pop("" if opcode == "SETITEMS" else "2")
            self._set_items(stack[-1], items)
        elif opcode in ("APPEND", "APPENDS"):
            items = self._pop("" if opcode == "APPENDS" else "1")
            if not isinstance(stack[-1], list):
                raise TypeError("append to something else")
            stack[-1].extend(items)
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            words = [argument] if opcode == "GLOBAL" else self._pop("2")
            stack.append(self._known_global(words))
        elif opcode == "BINPERSID":
            stack.append(self._load_storage(stack.pop()))
        elif opcode == "REDUCE":
            function, arguments = self._pop("2")
            stack.append(self._call(function, arguments))
        elif opcode == "BUILD":
            # The state of an OrderedDict: module versions, which nothing here reads.
            state, target = stack.pop(), stack[-1]
            if not isinstance(target, dict) or not isinstance(state, dict):
                raise TypeError("state for something else")
        elif opcode not in ("PROTO", "FRAME"):
            raise UnsafeWeightsError(f"{self._name!r} holds more than tensors: opcode {opcode}")

    def _pop(self, count: str) -> list[object]:
        """The last ``count`` items of the stack, or those above the last mark."""
        stack = self._stack
        if count:
            index = len(stack) - int(count)
            if index < 0:
                raise IndexError("the stack is empty")
            items = stack[index:]
            del stack[index:]
            return items
        items = []
        while not isinstance(item := stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def _set_items(self, target: object, items: list[object]) -> None:
        if not isinstance(target, dict):
            raise TypeError("items for something else")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise TypeError("a key that is no text")
            target[key] = value

    def _known_global(self, words: list[object]) -> _Global:
        if not all(isinstance(word, str) for word in words):
            raise TypeError("a name that is no text")
        name = _Global(" ".join(map(str, words)).replace(" ", "."))
        if name not in _KNOWN_GLOBALS:
            raise UnsafeWeightsError(
                f"{self._name!r} asks for {name.name[:80]!r}; only tensors are read"
            )
        return name

    def _call(self, function: object, arguments: object) -> object:
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are no tuple")
        if function == _ORDERED_DICT and arguments == ():
            return {}
        if function == _REBUILD_TENSOR:
            return _rebuild_tensor(*arguments[:4])
        if function == _REBUILD_PARAMETER and isinstance(arguments[0], torch.Tensor):
            return arguments[0]
        raise UnsafeWeightsError(f"{self._name!r} holds more than tensors")


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object) -> torch.Tensor:
    if not isinstance(storage, torch.Tensor):
        raise TypeError("not a storage")
    shape, strides = sizes_of(size), sizes_of(stride)
    (first,) = sizes_of([offset])
    if len(shape) != len(strides):
        raise ValueError("as many strides as sizes")
    num_elements = math.prod(shape)
    last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # A stride of 0 could make a huge tensor of one number: nothing is larger than its storage.
    if num_elements and (last >= storage.numel() or num_elements > storage.numel()):
        raise ValueError("a tensor beyond its storage")
    if not num_elements:
        return torch.empty(shape, dtype=storage.dtype)
    return storage.as_strided(shape, strides, first)


def sizes_of(values: object) -> list[int]:
    """``values`` if they can be sizes or offsets: at most 16 whole numbers from 0 to 2^48.

    Args:
        values: From a file.

    Returns:
        The same numbers.

    Raises:
        ValueError: If not.
    """
    if not isinstance(values, list | tuple) or len(values) > 16:
        raise ValueError("not a list of sizes")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**48:
            raise ValueError("not a size")
    return list(values)
