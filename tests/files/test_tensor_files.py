import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from luthier.errors import ArtifactError
from luthier.files.tensor_files import (
    check_safetensors_header,
    map_safetensors,
    read_safetensors,
    read_tensors,
    require_finite,
)


def test_safetensors_come_back(tmp_path):
    state = {"a": torch.randn(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.empty(0)}
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    check_safetensors_header(path)
    for read in (read_safetensors(path), map_safetensors(path)):
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], value) for key, value in state.items())


def _safetensors(tmp_path, header, data=b"\0" * 16, *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def _entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "header",
    [
        {"a": _entry(shape=(2**63,))},
        {"a": _entry(shape=(2**40, 2**40), offsets=(0, 16))},
        {"a": _entry(shape=(-4,))},
        {"a": _entry(shape=(4.0,))},
        {"a": _entry(dtype="F64")},
        {"a": _entry(dtype="PICKLE")},
        {"a": _entry(offsets=(0, 12))},
        {"a": _entry(offsets=(16, 0))},
        {"a": _entry(offsets=(-16, 0))},
        {"a": _entry(offsets=(0, 2**60))},
        {"a": _entry(), "b": _entry()},
        {"a": _entry(shape=(1,), offsets=(0, 4)), "b": _entry(shape=(1,), offsets=(12, 16))},
        {"a": _entry(shape=(3,), offsets=(0, 12))},
        {"a": [1, 2]},
        {"a": {"dtype": "F32"}},
        [],
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b"{" * 1000,
        b"[" * 100_000,
        b"not json",
        b"\xff\xfe",
    ],
    ids=lambda header: str(header)[:50],
)
def test_a_lying_safetensors_header_is_refused(tmp_path, header):
    path = _safetensors(tmp_path, header)
    for read in (read_safetensors, check_safetensors_header, map_safetensors):
        with pytest.raises(ArtifactError):
            read(path)


@pytest.mark.parametrize("length", [0, 1, 10_000, 2**31, 2**63, 2**64 - 1])
def test_an_impossible_header_length_is_refused(tmp_path, length):
    path = _safetensors(tmp_path, {"a": _entry()}, length=length)
    for read in (read_safetensors, check_safetensors_header, map_safetensors):
        with pytest.raises(ArtifactError):
            read(path)


def test_every_truncation_of_safetensors_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(20)}, path)
    content = path.read_bytes()
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        for read in (read_safetensors, check_safetensors_header, map_safetensors):
            with pytest.raises(ArtifactError):
                read(path)


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    with pytest.raises(ArtifactError, match="larger than 100 bytes"):
        read_safetensors(path, max_bytes=100)


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.pkl", "x.safetensors"])
def test_a_pickle_never_runs_whatever_its_name(tmp_path, name):
    marker = tmp_path / "pwned"

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = tmp_path / name
    torch.save({"a": Command()}, path)
    for content in (pickle.dumps(Command()), path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\0" * 100])
def test_junk_is_no_safetensors_file(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        read_tensors(path)


def test_a_missing_file_is_an_artifact_error(tmp_path):
    for read in (read_safetensors, check_safetensors_header, map_safetensors):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read(tmp_path / "x.safetensors")


def test_both_formats_are_read_by_suffix(tmp_path):
    state = {"a": torch.randn(3)}
    save_file(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.bin")
    for name in ("x.safetensors", "x.bin"):
        assert torch.equal(read_tensors(tmp_path / name)["a"], state["a"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_must_be_finite(number):
    require_finite(torch.ones(3), what="fine")
    with pytest.raises(ArtifactError, match="'weights' holds NaN"):
        require_finite(torch.tensor([1.0, number]), what="'weights'")
