from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from luthier.inference.kernels import library
from luthier.inference.kernels.library import kernels
from luthier.inference.runners import row_attention
from luthier.inference.runners.row_attention import (
    MAX_HEAD_DIM,
    attend_rows,
    has_row_attention,
)
from luthier.inference.runners.score_attention import ScoreOptions

needs_kernels = pytest.mark.skipif(kernels() is None, reason="no kernels for this machine")

#: Past and new tokens of a step's rows.
SPANS = [(0, 1), (1, 1), (86, 1), (3, 5), (0, 17), (511, 1), (510, 4), (1030, 2), (15, 16)]
PLAIN = ScoreOptions()


@dataclass(frozen=True)
class Step:
    """Random numbers; slots of the arena that belong to no row are no numbers."""

    query: torch.Tensor
    new: tuple[torch.Tensor, torch.Tensor]
    stored: tuple[torch.Tensor, torch.Tensor]
    rows: torch.Tensor

    def attend(
        self,
        rows: torch.Tensor | None = None,
        *,
        options: ScoreOptions = PLAIN,
        window: int | None = None,
        positions: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        rows = self.rows if rows is None else rows
        return attend_rows(
            self.query,
            self.new,
            self.stored,
            rows,
            options=options,
            window=window,
            positions=positions,
        )

    def parts(self, mixed: torch.Tensor) -> Iterator[torch.Tensor]:
        for first, count, _, _ in self.rows.tolist():
            yield mixed[first : first + count]


def make_step(
    num_kv_heads: int, group: int, head_dim: int, spans: list[tuple[int, int]] = SPANS
) -> Step:
    torch.manual_seed(head_dim)
    rows, num_slots, num_tokens = [], 3, 0
    for past, count in spans:
        rows.append((num_tokens, count, num_slots, num_slots + past + count))
        num_tokens, num_slots = num_tokens + count, num_slots + past + count + 5
    # As projections give them: heads within tokens.
    query = torch.randn(num_tokens, num_kv_heads * group, head_dim).transpose(0, 1)
    keys, values = torch.randn(2, num_tokens, num_kv_heads, head_dim).transpose(1, 2)
    stored = torch.full((2, num_kv_heads, num_slots, head_dim), float("nan"))
    for (past, _), (_, _, start, _) in zip(spans, rows, strict=True):
        stored[:, :, start : start + past] = torch.randn(2, num_kv_heads, past, head_dim)
    return Step(query, (keys, values), (stored[0], stored[1]), torch.tensor(rows))


def exactly(
    step: Step, *, options: ScoreOptions = PLAIN, window: int | None = None
) -> torch.Tensor:
    """The same in double precision, token by token."""
    num_heads, num_tokens, head_dim = step.query.shape
    group = num_heads // len(step.stored[0])
    scaling = head_dim**-0.5 if options.scaling is None else options.scaling
    out = torch.empty(num_tokens, num_heads, head_dim, dtype=torch.double)
    keys, values = (
        torch.cat([stored, new], 1).double().repeat_interleave(group, 0)
        for stored, new in zip(step.stored, step.new, strict=True)
    )
    num_slots = step.stored[0].shape[1]
    for first, count, start, end in step.rows.tolist():
        past = list(range(start, end - count))
        for i in range(count):
            seen = past + [num_slots + token for token in range(first, first + i + 1)]
            seen = seen[-window:] if window else seen
            scores = (keys[:, seen] @ step.query[:, first + i, :, None].double())[..., 0] * scaling
            if options.softcap is not None:
                scores = torch.tanh(scores / options.softcap) * options.softcap
            if options.sinks is not None:
                scores = torch.cat([scores, options.sinks[:, None].double()], 1)
            weights = scores.softmax(1)[:, : len(seen)]
            out[first + i] = (weights[:, None] @ values[:, seen])[:, 0]
    return out


@needs_kernels
@pytest.mark.parametrize("head_dim", [1, 4, 16, 20, 64, 80, 128, 250])
@pytest.mark.parametrize(("num_kv_heads", "group"), [(1, 1), (3, 3), (2, 7), (4, 2)])
def test_it_is_that_of_double_precision(num_kv_heads: int, group: int, head_dim: int) -> None:
    step = make_step(num_kv_heads, group, head_dim)
    torch.testing.assert_close(step.attend().double(), exactly(step), rtol=0, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("window", [None, 1, 2, 16, 100, 600])
@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        ScoreOptions(scaling=0.7),
        ScoreOptions(softcap=2.0),
        ScoreOptions(softcap=50.0),
        ScoreOptions(sinks=torch.linspace(-3, 5, 6)),
        ScoreOptions(scaling=0.2, softcap=20.0, sinks=torch.linspace(-1, 1, 6)),
    ],
)
def test_scores_are_changed_as_the_model_does(options: ScoreOptions, window: int | None) -> None:
    step = make_step(2, 3, 24)
    got = step.attend(options=options, window=window)
    expected = exactly(step, options=options, window=window)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("scaling", [0.0, 1e-30, 10.0])
def test_weights_may_be_alike_or_one_may_be_all(scaling: float) -> None:
    step, options = make_step(2, 2, 32), ScoreOptions(scaling=scaling)
    expected = exactly(step, options=options)
    torch.testing.assert_close(step.attend(options=options).double(), expected, rtol=0, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("scaling", [-1e30, 1e4, 1e30])
def test_weights_of_huge_scores_sum_to_one(scaling: float) -> None:
    step = make_step(2, 2, 32)
    for values in (step.new[1], step.stored[1]):
        values.fill_(3)
    got = step.attend(options=ScoreOptions(scaling=scaling))
    torch.testing.assert_close(got, torch.full_like(got, 3))


@needs_kernels
def test_what_is_new_is_stored_in_its_rows_place() -> None:
    step = make_step(3, 2, 20)
    before = [each.clone() for each in step.stored]
    step.attend()
    for stored, new, old in zip(step.stored, step.new, before, strict=True):
        for first, count, _, end in step.rows.tolist():
            assert torch.equal(stored[:, end - count : end], new[:, first : first + count])
            old[:, end - count : end] = new[:, first : first + count]
        torch.testing.assert_close(stored, old, rtol=0, atol=0, equal_nan=True)


@needs_kernels
def test_scores_may_have_a_bias_for_the_distance() -> None:
    step = make_step(3, 2, 20)
    bias = torch.randn(6, 1100)
    got = attend_rows(
        step.query, step.new, step.stored, step.rows, options=PLAIN, window=700, bias=bias
    )
    for (first, count, start, end), part in zip(step.rows.tolist(), step.parts(got), strict=True):
        keys, values = (each[:, start:end].double() for each in step.stored)
        scores = step.query[:, first : first + count].double() @ keys.repeat_interleave(
            2, 0
        ).transpose(1, 2)
        distances = torch.arange(end - start) - torch.arange(end - start)[-count:, None]
        scores = scores * 20**-0.5 + bias.double()[:, (distances + 1099).clamp(max=1099)]
        scores = scores.masked_fill((distances > 0) | (distances <= -700), float("-inf"))
        expected = scores.softmax(2) @ values.repeat_interleave(2, 0)
        torch.testing.assert_close(part.double(), expected.transpose(0, 1), rtol=0, atol=1e-5)


@needs_kernels
def test_where_nothing_is_new_a_token_sees_all_of_its_row() -> None:
    step = make_step(2, 3, 24)
    torch.manual_seed(1)
    stored = torch.randn(2, 2, 50, 24)
    rows = torch.tensor([(0, 1, 3, 20), (1, 1, 20, 21), (2, 30, 5, 8), (32, 2, 0, 50)])
    got = attend_rows(step.query, None, (stored[0], stored[1]), rows, options=PLAIN)
    for first, count, start, end in rows.tolist():
        expected = scaled_dot_product_attention(
            step.query[None, :, first : first + count],
            stored[0][None, :, start:end],
            stored[1][None, :, start:end],
            enable_gqa=True,
        )
        torch.testing.assert_close(got[first : first + count], expected[0].transpose(0, 1))


@needs_kernels
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(20, 20), (64, 64), (80, 32), (16, 6)])
def test_queries_and_keys_are_turned_to_their_positions(head_dim: int, rotary_dim: int) -> None:
    step = make_step(2, 3, head_dim)
    angles = torch.randn(step.query.shape[1], rotary_dim // 2).repeat(1, 2)
    cosines, sines = angles.cos() * 1.5, angles.sin() * 1.5

    def turn(x: torch.Tensor) -> torch.Tensor:
        low, high = x[..., : rotary_dim // 2], x[..., rotary_dim // 2 : rotary_dim]
        turned = torch.cat([low, high], -1) * cosines + torch.cat([-high, low], -1) * sines
        return torch.cat([turned, x[..., rotary_dim:]], -1)

    keys, values = step.new
    turned = replace(
        step,
        query=turn(step.query),
        new=(turn(keys), values),
        stored=(step.stored[0].clone(), step.stored[1].clone()),
    )
    got, expected = step.attend(positions=(cosines, sines)), turned.attend()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    for stored, wanted in zip(step.stored, turned.stored, strict=True):
        torch.testing.assert_close(stored, wanted, equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("window", [None, 20])
def test_a_row_does_not_depend_on_those_beside_it(window: int | None) -> None:
    step = make_step(2, 3, 20)
    together = step.attend(window=window)
    for row, part in zip(step.rows.split(1), step.parts(together), strict=True):
        first, count, _, _ = row[0].tolist()
        assert torch.equal(step.attend(row, window=window)[first : first + count], part)


@needs_kernels
@pytest.mark.parametrize("head_dim", [20, 64])
def test_a_token_does_not_depend_on_the_piece_that_it_came_in(head_dim: int) -> None:
    step = make_step(2, 3, head_dim)
    together = step.attend()
    one_by_one = [
        (first + i, 1, start, end - count + i + 1)
        for first, count, start, end in step.rows.tolist()
        for i in range(count)
    ]
    assert torch.equal(step.attend(torch.tensor(one_by_one)), together)


@needs_kernels
@pytest.mark.parametrize("written", [0x7FC00000, 0x7FC00001, 0x7FC001FF, -1])
def test_what_is_no_number_stays_in_its_row(written: int) -> None:
    step = make_step(2, 2, 16)
    expected = step.attend()
    no_number = torch.tensor(written, dtype=torch.int32).view(torch.float32)
    step.query[:, 2] = no_number
    step.new[0][:, 3] = no_number
    got = step.attend()
    # Token 2 is a row of its own, token 3 the first of a row of five.
    assert got[2:8].isnan().all()
    assert torch.equal(got[:2], expected[:2])
    assert torch.equal(got[8:], expected[8:])


@needs_kernels
def test_scores_of_minus_infinity_are_no_weights() -> None:
    step = make_step(2, 2, 16, [(1300, 3)])
    expected = step.attend(window=100)
    bias = torch.zeros(4, 1303)
    bias[:, :-100] = -torch.inf  # among them whole blocks before the first number
    got = attend_rows(step.query, step.new, step.stored, step.rows, options=PLAIN, bias=bias)
    torch.testing.assert_close(got, expected)
    bias[:] = -torch.inf
    got = attend_rows(step.query, step.new, step.stored, step.rows, options=PLAIN, bias=bias)
    assert got.isnan().all()


@needs_kernels
@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_sees_nothing_is_nothing(num_threads: int) -> None:
    step = make_step(2, 2, 20, [(5, 1), (5, 2), (5, 9)])
    rows = torch.tensor([(0, 1, 3, 9), (1, 2, 9, 9), (3, 9, 26, 40)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        step.attend()
        got = attend_rows(step.query, None, step.stored, rows, options=PLAIN)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got[1:3], torch.zeros(2, 4, 20))
    assert got.isfinite().all()
    assert got[[0, *range(3, 12)]].all()


@needs_kernels
@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_share_the_work(num_threads: int) -> None:
    for spans in (SPANS, [(7, 40)], [(5, 1)], [(2, 1), (2, 1)]):
        step = make_step(1, 5, 16, spans)
        alone = step.attend()
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(num_threads)
            assert torch.equal(step.attend(), alone)
        finally:
            torch.set_num_threads(before)


@needs_kernels
def test_it_reads_any_strides_but_those_within_heads() -> None:
    step = make_step(2, 3, 16)
    expected = step.attend()
    solid = replace(step, query=step.query.contiguous())
    assert torch.equal(solid.attend(), expected)
    wide = torch.randn(step.query.shape[1], 10, 16)
    views = wide[:, :6].transpose(0, 1), wide[:, 6:8].transpose(0, 1), wide[:, 8:].transpose(0, 1)
    joint = replace(step, query=views[0], new=(views[1], views[2]))
    apart = replace(step, query=views[0].clone(), new=(views[1].clone(), views[2].clone()))
    assert torch.equal(joint.attend(), apart.attend())


@needs_kernels
def test_it_is_for_floats_of_a_cpu_side_by_side() -> None:
    fits = torch.zeros(2, 3, 16)
    assert has_row_attention(fits, fits)
    for other in (
        fits.double(),
        fits.bfloat16(),
        fits.to("meta"),
        torch.zeros(2, 16, 3).transpose(1, 2),
        torch.zeros(2, 3, 8),
    ):
        assert not has_row_attention(fits, other)
        assert not has_row_attention(other, fits)
    assert not has_row_attention(torch.zeros(1, 1, MAX_HEAD_DIM + 1))


def test_without_kernels_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "luthier.inference.runners.row_attention.kernel", lambda name, arguments: None
    )
    assert not has_row_attention(torch.zeros(2, 3, 16))


def test_the_kernel_is_told_each_field_of_its_structure() -> None:
    source = Path(library.__file__).with_name("row_attention.c").read_text()
    declared = source[source.index("struct attention {") : source.index("};")]
    lines = [line.split("//")[0].strip() for line in declared.splitlines()[1:]]
    parts = [part for each in " ".join(lines).split(";") for part in each.split(",")]
    names = [part.split()[-1].lstrip("*") for part in parts if part.strip()]
    assert names == [name for name, *_ in row_attention._Arguments._fields_]
