"""The size of a shared pass: from costs that are made up, and measured on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.resources.base_model import BaseModel
from luthier.training.fusion.pass_cost import MIN_GAIN, find_pass_cost, measured_pass_cost


def _linear(fixed: float, each: float) -> list[int]:
    """The smallest doubling at which twice the tokens save less than 3 % each."""
    size = 128
    while (fixed / (2 * size)) / (each + fixed / size) >= MIN_GAIN:
        size *= 2
    return [size // 2, size]


@pytest.mark.parametrize("fixed", [0.001, 0.02, 0.2, 1.0])
def test_a_pass_grows_until_a_token_gets_no_cheaper(fixed: float) -> None:
    sizes: list[int] = []

    def seconds_of(size: int) -> float:
        sizes.append(size)
        return fixed + 0.004 * size

    found = find_pass_cost(seconds_of, most_tokens=10**6, max_seconds=10**9)
    assert found.pass_tokens in _linear(fixed, 0.004)
    assert max(sizes) == max(found.tokens) <= 2 * max(128, found.pass_tokens)


@pytest.mark.parametrize("fixed", [0.02, 0.2, 1.0])
def test_little_time_gives_the_same_answer_from_small_passes(fixed: float) -> None:
    spent: list[float] = []

    def seconds_of(size: int) -> float:
        spent.append(fixed + 0.004 * size)
        return spent[-1]

    found = find_pass_cost(seconds_of, most_tokens=10**6, max_seconds=20 * fixed + 3)
    low, high = _linear(fixed, 0.004)
    assert low <= found.pass_tokens <= high
    assert sum(spent) <= 20 * fixed + 3 + spent[0]


def test_a_device_that_is_never_filled_gets_the_largest_pass() -> None:
    found = find_pass_cost(lambda size: 0.001, most_tokens=4096, max_seconds=1.0)
    assert found.pass_tokens == 4096
    found = find_pass_cost(lambda size: 10.0, most_tokens=4096, max_seconds=1.0)
    assert found.pass_tokens == 4096
    assert found.tokens == (32, 64)


def test_no_pass_is_larger_than_allowed() -> None:
    found = find_pass_cost(lambda size: 5 + size * 1e-6, most_tokens=300, max_seconds=10**6)
    assert found.pass_tokens == 256


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_base_is_measured_once(
    kind: str, tiny_causal_base: BaseModel, tiny_seq2seq_base: BaseModel, tmp_path: Path
) -> None:
    base = tiny_causal_base if kind == "causal" else tiny_seq2seq_base
    found = measured_pass_cost(base, most_tokens=256, max_seconds=1.0, cache_folder=tmp_path)
    assert 128 <= found.pass_tokens <= 256
    assert all(seconds >= 0 for seconds in found.seconds)
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert content["pass_tokens"] == found.pass_tokens
    file.write_text(json.dumps(content | {"pass_tokens": 77}))
    again = measured_pass_cost(base, most_tokens=256, max_seconds=1.0, cache_folder=tmp_path)
    assert again.pass_tokens == 77
    file.write_text("{damaged")
    again = measured_pass_cost(base, most_tokens=256, max_seconds=1.0, cache_folder=tmp_path)
    assert 128 <= again.pass_tokens <= 256
    assert base.model.get_input_embeddings().weight.grad is None


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    found = measured_pass_cost(
        tiny_causal_base, most_tokens=64, max_seconds=1.0, cache_folder=tmp_path / "file" / "x"
    )
    assert found.pass_tokens > 0
