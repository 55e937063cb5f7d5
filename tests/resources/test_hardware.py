import pytest
import torch

from luthier.errors import InvalidInputError
from luthier.resources import hardware
from luthier.resources.hardware import parse_device, parse_dtype, pick_training_dtype


@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        ("float32", torch.float32),
        ("torch.bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_dtype_words_are_read(word, dtype):
    assert parse_dtype(word) is dtype


@pytest.mark.parametrize(
    "word", ["float33", "int8", "torch.int64", "", "auto", None, 3, torch.int8]
)
def test_other_dtypes_are_refused_by_name(word):
    with pytest.raises(InvalidInputError, match="'torch_dtype' must be one of"):
        parse_dtype(word)


def test_a_near_miss_gets_a_suggestion():
    with pytest.raises(InvalidInputError, match="did you mean 'bfloat16'"):
        parse_dtype("bfloat61")


def test_the_cpu_is_a_device_and_auto_finds_one():
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_device("cpu:0") == torch.device("cpu")
    assert parse_device("auto").type in ("cpu", "cuda", "mps")
    assert parse_device(None) == parse_device("auto")


@pytest.mark.parametrize("word", ["cuda:99", "tpu", "", "cpu:7", "meta", 3.5])
def test_a_device_this_machine_lacks_is_refused(word):
    with pytest.raises(InvalidInputError, match="'device'"):
        parse_device(word)


@pytest.mark.parametrize(("speedup", "expected"), [(0.2, torch.float32), (3.0, torch.bfloat16)])
def test_half_precision_on_a_cpu_is_used_only_if_it_is_faster(speedup, expected, monkeypatch):
    monkeypatch.setattr(hardware, "measure_cpu_speedup", lambda dtype: speedup)
    assert pick_training_dtype("bfloat16", device=torch.device("cpu")) is expected
    assert pick_training_dtype("float32", device=torch.device("cpu")) is torch.float32


def test_on_an_accelerator_the_request_counts():
    assert pick_training_dtype("bfloat16", device=torch.device("cuda", 0)) is torch.bfloat16


def test_the_speed_is_measured_and_kept():
    num_threads = torch.get_num_threads()
    first = hardware.measure_cpu_speedup(torch.bfloat16)
    assert torch.get_num_threads() == num_threads
    assert first > 0
    assert hardware.measure_cpu_speedup(torch.bfloat16) == first


@pytest.mark.parametrize(("speedup", "expected"), [(4.0, "bfloat16"), (0.2, "off")])
def test_mixed_precision_is_used_where_it_is_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, speedup: float, expected: str
) -> None:
    monkeypatch.setattr(hardware, "measure_cpu_speedup", lambda dtype: speedup)
    cpu = torch.device("cpu")
    assert hardware.pick_mixed_precision("bfloat16", device=cpu) == expected
    assert hardware.pick_mixed_precision("off", device=cpu) == "off"
    assert hardware.pick_mixed_precision("float16", device=torch.device("cuda")) == "float16"
