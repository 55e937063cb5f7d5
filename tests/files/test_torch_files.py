"""The torch reader is compared with ``torch.load``; every attack file is made here."""

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from luthier.errors import ArtifactError, UnsafeWeightsError
from luthier.files import torch_files
from luthier.files.torch_files import read_torch_file, read_torch_tensor


@pytest.fixture
def marker(tmp_path):
    """A file that exists afterwards if an attack ran."""
    path = tmp_path / "pwned"
    yield path
    assert not path.exists()


def _saved(tmp_path, value, name="x.pt", **options):
    path = tmp_path / name
    torch.save(value, path, **options)
    return path


def _zip(path: Path, program: bytes, *, storages=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


# ── what torch.save writes ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_state_dicts_come_back_as_torch_load_reads_them(tmp_path, dtype, protocol):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    state = {
        "whole": base,
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "parameter": torch.nn.Parameter(torch.ones(3), requires_grad=True),
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(1.5),
    }
    path = _saved(tmp_path, state, pickle_protocol=protocol)
    ours = read_torch_file(path)
    theirs = torch.load(path, weights_only=True) if protocol == 2 else state
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key])
        assert (tensor.dtype, tensor.shape) == (theirs[key].dtype, theirs[key].shape)
        assert type(tensor) is torch.Tensor


def test_the_state_dict_of_a_module_is_read(tmp_path):
    layer = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    read = read_torch_file(_saved(tmp_path, layer.state_dict()))
    assert all(torch.equal(read[key], value) for key, value in layer.state_dict().items())


def test_one_tensor_is_read_where_one_is_meant(tmp_path):
    tensor = torch.randn(8, 4, requires_grad=True)
    path = _saved(tmp_path, tensor)
    assert torch.equal(read_torch_tensor(path), tensor)
    with pytest.raises(ArtifactError, match="dictionary of tensors"):
        read_torch_file(path)
    with pytest.raises(ArtifactError, match="must hold one tensor"):
        read_torch_tensor(_saved(tmp_path, {"a": tensor}))


# ── pickles that do something ───────────────────────────────────────────────────────────────────


class _Command:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_plain_pickle_is_refused(tmp_path, marker, protocol):
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"a": _Command(marker)}, protocol=protocol))
    with pytest.raises(ArtifactError):
        read_torch_file(path)


def test_a_command_in_a_torch_file_is_refused_by_name(tmp_path, marker):
    path = _saved(tmp_path, {"a": _Command(marker)})
    with pytest.raises(UnsafeWeightsError, match=r"asks for '(posix|nt)\.system'"):
        read_torch_file(path)


def test_a_whole_module_is_refused(tmp_path):
    with pytest.raises(UnsafeWeightsError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(_saved(tmp_path, torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "value", [{"a": 3}, ["x"], {1: torch.ones(2)}, {"a": {"b": torch.ones(2)}}, None]
)
def test_data_that_is_no_dictionary_of_tensors_is_refused(tmp_path, value):
    with pytest.raises(ArtifactError):
        read_torch_file(_saved(tmp_path, value))


def test_the_old_torch_format_is_refused(tmp_path):
    path = _saved(tmp_path, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeWeightsError, match="plain pickle"):
        read_torch_file(path)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"\x80\x02cos\nsystem\n.",
        b"(ios\nsystem\n.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_other_globals_and_opcodes_are_refused(tmp_path, program):
    with pytest.raises(ArtifactError):
        read_torch_file(_zip(tmp_path / "x.pt", program))


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02R.",
        b"\x80\x02}u.",
        b"\x80\x02h\x07.",
        b"\x80\x02r\xff\xff\xff\x7f}.",
        b"\x80\x02}X\x01\x00\x00\x00as.",
        b"\x80\x02]}b.",
        b"\x80\x02(t(t.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x02)Q.",
        b"\xff\xff\xff",
    ],
)
def test_broken_programs_are_corrupt_files(tmp_path, program):
    with pytest.raises(ArtifactError):
        read_torch_file(_zip(tmp_path / "x.pt", program))


def test_a_structure_without_end_is_given_up(tmp_path, monkeypatch):
    path = _zip(tmp_path / "x.pt", b"\x80\x02" + b"}" * 5_000 + b".")
    monkeypatch.setattr(torch_files, "MAX_OPCODES", 1_000)
    with pytest.raises(ArtifactError):
        read_torch_file(path)


DEEP = b")" + b"\x85" * 150_000


@pytest.mark.parametrize(
    "program",
    [
        DEEP + b".",
        b"}" + DEEP + b"Ns.",
        b"(X\x07\x00\x00\x00storage" + DEEP + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ.",
        DEEP + b"X\x01\x00\x00\x00a\x93.",
        b"ccollections\nOrderedDict\n" + DEEP + b"R.",
        DEEP + b")R.",
    ],
    ids=["value", "key", "storage type", "global", "arguments", "function"],
)
def test_deep_nesting_ends_in_an_error_not_a_crash(tmp_path, program):
    with pytest.raises(ArtifactError):
        read_torch_file(_zip(tmp_path / "x.pt", b"\x80\x02" + program))


# ── tensors that lie ────────────────────────────────────────────────────────────────────────────


class _Storage:
    def __init__(self, key="0", num_elements=4):
        self.id = ("storage", torch.FloatStorage, key, "cpu", num_elements)


def _program(size, stride, *, offset=0, key="0", num_elements=4):
    """The pickle of {"a": tensor} with the given geometry."""

    class Rebuild:
        def __reduce__(self):
            arguments = (_Storage(key, num_elements), offset, size, stride, False,
                         collections.OrderedDict())  # fmt: skip
            return torch._utils._rebuild_tensor_v2, arguments

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, _Storage) else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"a": Rebuild()})
    return stream.getvalue()


def test_an_honest_geometry_is_read(tmp_path):
    path = _zip(tmp_path / "x.pt", _program((2, 2), (2, 1)), storages={"0": bytes(16)})
    assert read_torch_file(path)["a"].shape == (2, 2)


@pytest.mark.parametrize(
    "geometry",
    [
        {"size": (5,), "stride": (1,)},
        {"size": (2,), "stride": (4,)},
        {"size": (4,), "stride": (1,), "offset": 1},
        {"size": (2,), "stride": (-1,)},
        {"size": (-1,), "stride": (1,)},
        {"size": (2**62,), "stride": (0,)},
        {"size": (2**31, 2**31), "stride": (0, 0)},
        {"size": (1000,), "stride": (0,)},
        {"size": (2, 2), "stride": (1,)},
        {"size": (2,), "stride": (1,), "num_elements": 400},
        {"size": (2,), "stride": (1,), "key": "1"},
        {"size": (2,), "stride": (1,), "key": "../../etc/passwd"},
        {"size": (True,), "stride": (1,)},
        {"size": (1.0,), "stride": (1,)},
        {"size": (1,) * 60, "stride": (1,) * 60},
    ],
    ids=str,
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, geometry):
    path = _zip(tmp_path / "x.pt", _program(**geometry), storages={"0": bytes(16)})
    with pytest.raises(ArtifactError):
        read_torch_file(path)


# ── zip files that lie ──────────────────────────────────────────────────────────────────────────


def test_every_truncation_is_noticed(tmp_path):
    content = _saved(tmp_path, {"a": torch.randn(20)}).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError):
            read_torch_file(path)


def test_a_flipped_byte_in_the_data_is_noticed(tmp_path):
    path = _saved(tmp_path, {"a": torch.full((64,), 7.0)})
    content = bytearray(path.read_bytes())
    at = content.find(struct.pack("<f", 7.0) * 8)
    content[at + 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        read_torch_file(path)


def test_a_compressed_zip_is_refused_before_it_grows(tmp_path):
    bomb = _zip(
        tmp_path / "x.pt",
        _program((2**24,), (1,), num_elements=2**24),
        storages={"0": bytes(2**26)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ArtifactError, match=r"as torch\.save writes it"):
        read_torch_file(bomb)


def test_two_entries_of_one_name_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(ArtifactError):
        read_torch_file(path)


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = _saved(tmp_path, {"a": torch.ones(1000)})
    with pytest.raises(ArtifactError, match="larger than 100 bytes"):
        read_torch_file(path, max_bytes=100)


def test_an_oversized_structure_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(ArtifactError, match=r"data\.pkl exceeds"):
        read_torch_file(_saved(tmp_path, {"a": torch.ones(2)}))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\0" * 100])
def test_junk_is_no_torch_file(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        read_torch_file(path)


def test_a_missing_file_or_a_folder_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_torch_file(tmp_path / "x.pt")
    (tmp_path / "d.pt").mkdir()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_torch_file(tmp_path / "d.pt")
