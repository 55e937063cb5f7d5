from __future__ import annotations

import random

import pytest
import torch

from luthier.errors import EngineError
from luthier.inference.deltas.delta_kernel import (
    KernelSpans,
    KernelStep,
    delta_kernel,
    narrow_dtypes,
)
from luthier.inference.deltas.delta_table import DeltaRows, TableContent, rescaled

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    delta_kernel(torch.float32, CPU) is None, reason="no kernels for this machine"
)


def make_table(
    num_inputs: int, num_outputs: int, *, dtype: torch.dtype = torch.float32
) -> TableContent:
    a, b = torch.randn(400, num_inputs), torch.randn(400, num_outputs) * 0.1
    return TableContent(a.to(dtype), b.to(dtype))


def make_rows(ranks: list[int], *, scaled: frozenset[int] = frozenset()) -> list[DeltaRows]:
    """One after the other, with gaps, the last adapter's first."""
    rows, start = [], 3
    for index, rank in reversed(list(enumerate(ranks))):
        rows.append(DeltaRows(start, rank, has_scale=index in scaled))
        start = rows[-1].stop + index % 3
    return rows[::-1]


def make_step(counts: list[int], rows: list[DeltaRows | None], table: TableContent) -> KernelStep:
    call = delta_kernel(torch.float32, CPU)
    assert call is not None
    return KernelStep(call, [(KernelSpans(counts, rows), table)])


def exactly(
    output: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    table: TableContent,
    counts: list[int],
    rows: list[DeltaRows | None],
) -> torch.Tensor:
    """Adapter by adapter in double precision."""
    result, wide = output.double(), None if bias is None else bias.double()
    first = 0
    for count, each in zip(counts, rows, strict=True):
        own = slice(first, first + count)
        first += count
        if each is None:
            continue
        if each.has_scale:
            result[own] = rescaled(result[own], table.b[each.stop - 1].double(), wide)
        factors = slice(each.start, each.start + each.rank)
        a, b = table.a[factors].double(), table.b[factors].double()
        result[own] += x[own].double() @ a.T @ b
    return result


@pytest.mark.parametrize("num_inputs", [1, 7, 16, 48, 65, 576])
@pytest.mark.parametrize("num_outputs", [1, 8, 31, 64, 193])
@pytest.mark.parametrize("has_bias", [True, False])
def test_deltas_are_those_of_double_precision(
    num_inputs: int, num_outputs: int, has_bias: bool
) -> None:
    torch.manual_seed(num_inputs)
    rng = random.Random(num_outputs)
    table = make_table(num_inputs, num_outputs)
    bias = torch.randn(num_outputs) if has_bias else None
    ranks = [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 33, 64, 0, 4, 4]
    counts = [rng.choice([1, 1, 1, 2, 3, 4, 5, 6, 7, 13, 40]) for _ in ranks]
    rows: list[DeltaRows | None] = [*make_rows(ranks, scaled=frozenset({1, 3, 9, 12}))]
    rows[13] = None
    num_tokens = sum(counts) + 3
    x, output = torch.randn(num_tokens, num_inputs), torch.randn(num_tokens, num_outputs)
    before = output.clone()
    make_step(counts, rows, table).add(output, x, bias)
    expected = exactly(before, x, bias, table, counts, rows)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(output[-3:], before[-3:])


@pytest.mark.parametrize("num_inputs", [1, 7, 48, 65, 576])
@pytest.mark.parametrize("num_outputs", [1, 31, 64, 193])
def test_factors_of_16_bits_lose_nothing(num_inputs: int, num_outputs: int) -> None:
    torch.manual_seed(num_inputs)
    ranks, counts = [1, 3, 4, 7, 16, 33], [1, 6, 1, 2, 1, 14]
    rows: list[DeltaRows | None] = [*make_rows(ranks)]
    x, output = torch.randn(30, num_inputs), torch.randn(30, num_outputs)
    call = delta_kernel(torch.float32, CPU)
    assert call is not None
    spans, expected, total = KernelSpans(counts, rows), output, output.clone()
    parts = []
    for dtype in (*narrow_dtypes(torch.float32, CPU), torch.float32):
        table = make_table(num_inputs, num_outputs, dtype=dtype)
        # Denormal numbers, infinity's neighbours and zeros are numbers like others.
        table.a[5, 0], table.b[6, 0] = torch.finfo(dtype).tiny / 2, -0.0
        parts.append((spans, table))
        wide = TableContent(table.a.float(), table.b.float())
        expected = exactly(expected, x, None, wide, counts, rows)
        widened, narrow = output.clone(), output.clone()
        make_step(counts, rows, wide).add(widened, x, None)
        make_step(counts, rows, table).add(narrow, x, None)
        assert torch.equal(narrow, widened)
    KernelStep(call, parts).add(total, x, None)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-4)


def test_what_a_token_gets_does_not_depend_on_those_beside_it() -> None:
    torch.manual_seed(0)
    table = make_table(75, 45)
    rows: list[DeltaRows | None] = [*make_rows([6, 20], scaled=frozenset({1}))]
    x, output, bias = torch.randn(20, 75), torch.randn(20, 45), torch.randn(45)
    together = output.clone()
    make_step([4, 16], rows, table).add(together, x, bias)
    for first in range(4, 20):
        for stop in range(first + 1, 21):
            part = output[first:stop].clone()
            make_step([stop - first], rows[1:], table).add(part, x[first:stop], bias)
            assert torch.equal(part, together[first:stop])


@pytest.mark.parametrize("num_threads", [2, 3])
def test_several_threads_give_the_same_bits(num_threads: int) -> None:
    torch.manual_seed(0)
    table = make_table(96, 203)
    rows: list[DeltaRows | None] = [*make_rows([5, 64, 8], scaled=frozenset({2}))]
    x, output = torch.randn(20, 96), torch.randn(20, 203)
    step, before = make_step([1, 13, 6], rows, table), torch.get_num_threads()
    results = []
    try:
        for number in (1, num_threads):
            torch.set_num_threads(number)
            results.append(output.clone())
            step.add(results[-1], x, None)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_any_order_and_precision_of_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    table, counts = make_table(32, 24), [2, 3]
    rows: list[DeltaRows | None] = [*make_rows([4, 9])]
    inputs = [torch.randn(5, 40)[:, :32], torch.randn(5, 64)[:, ::2], torch.randn(32, 5).t()]
    for x in [*inputs, torch.randn(1, 32).expand(5, 32), torch.randn(5, 32).double()]:
        for output in (torch.randn(5, 30)[:, 3:27], torch.randn(24, 5).t(), torch.randn(5, 24)):
            expected = exactly(output, x, None, table, counts, rows)
            make_step(counts, rows, table).add(output, x, None)
            torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-4)


def test_what_is_not_finite_stays_with_its_adapters_tokens() -> None:
    torch.manual_seed(0)
    table = make_table(32, 24)
    good, bad = make_rows([4, 4])
    table.b[bad.start + 1] = torch.nan
    x, output = torch.randn(4, 32), torch.randn(4, 24)
    make_step([1, 1, 1], [good, bad, good], table).add(output, x, None)
    assert output[1].isnan().all()
    assert output[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_left_to_pytorch(dtype: torch.dtype) -> None:
    assert delta_kernel(dtype, CPU) is None
    assert delta_kernel(torch.float32, torch.device("meta")) is None
    assert narrow_dtypes(dtype, CPU) == ()


@pytest.mark.parametrize(
    ("x_shape", "output_shape"),
    [((4, 32), (4, 24)), ((5, 16), (5, 24)), ((5, 32), (5, 16)), ((4, 32), (5, 24))],
)
def test_nothing_beyond_a_layers_tokens_is_changed(
    x_shape: tuple[int, int], output_shape: tuple[int, int]
) -> None:
    rows: list[DeltaRows | None] = [*make_rows([4, 9])]
    step, output = make_step([2, 3], rows, make_table(32, 24)), torch.zeros(output_shape)
    with pytest.raises(EngineError, match="5 tokens"):
        step.add(output, torch.ones(x_shape), None)
    assert not output.any()
