"""Rows laid end to end: every label is predicted from exactly what stands before it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import IGNORED_LABEL, Example
from luthier.training.data.packing import PackedRows, RowGroup, pack_rows


def _batch(*rows: tuple[tuple[int, ...], tuple[int, ...]]) -> TokenBatch:
    examples = [Example(number, ids, labels) for number, (ids, labels) in enumerate(rows, 1)]
    return collate(examples, pad_token_id=0, is_seq2seq=False, device=torch.device("cpu"))


def _seen(packed: PackedRows, num_virtual_tokens: int) -> list[tuple[tuple[int, ...], int]]:
    """By brute force: for each label, the tokens that its place sees, and the label. Virtual
    tokens are -1, -2 …"""
    tokens = [-1 - index for index in range(num_virtual_tokens)] + packed.input_ids.tolist()
    prefix = packed.layout.prefix_length
    row_start = {index: 0 for index in range(prefix)}
    start = prefix
    for group in packed.layout.groups:
        for _ in range(group.num_rows):
            row_start |= {start + offset: start for offset in range(group.length)}
            start += group.length
    assert start == len(tokens)
    seen = []
    for place, label in zip(packed.places.tolist(), packed.labels.tolist(), strict=True):
        own = tokens[row_start[place] : place + 1]
        view = own if place < prefix else tokens[:prefix] + own
        assert packed.position_ids[0, place] == len(view) - 1
        seen.append((tuple(view), label))
    return seen


def _expected(batch: TokenBatch, num_virtual_tokens: int) -> list[tuple[tuple[int, ...], int]]:
    virtual = tuple(-1 - index for index in range(num_virtual_tokens))
    return [
        ((*virtual, *ids[:column].tolist()), int(label))
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True)
        for column, label in enumerate(labels)
        if label != IGNORED_LABEL
    ]


@st.composite
def _rows(draw: st.DrawFn) -> TokenBatch:
    common = draw(st.lists(st.integers(1, 9), max_size=40))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        own = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
        ids = (*common, *own)
        is_learned = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        pairs = zip(ids, is_learned, strict=True)
        rows.append((ids, tuple(token if learned else -100 for token, learned in pairs)))
    return _batch(*rows)


@settings(max_examples=150, deadline=None)
@given(_rows(), st.integers(0, 5), st.booleans())
def test_every_label_is_predicted_from_what_stands_before_it(
    batch: TokenBatch, num_virtual_tokens: int, shares_text: bool
) -> None:
    packed = pack_rows(batch, num_virtual_tokens=num_virtual_tokens, shares_text=shares_text)
    expected = _expected(batch, num_virtual_tokens)
    if packed is None:
        begins_with_label = bool((batch.labels[:, 0] != IGNORED_LABEL).any())
        assert not expected or (num_virtual_tokens == 0 and begins_with_label)
        return
    assert _seen(packed, num_virtual_tokens) == expected


def test_what_predicts_nothing_is_left_out() -> None:
    batch = _batch(((5, 6, 7, 8, 9), (-100, -100, 7, -100, -100)), ((4, 3), (-100, -100)))
    packed = pack_rows(batch)
    assert packed is not None
    assert packed.input_ids.tolist() == [5, 6]
    assert packed.layout.groups == (RowGroup(1, 2),)


def test_rows_of_one_length_are_neighbours() -> None:
    row = (-100, -100, 1)
    batch = _batch(((5, 6, 1), row), ((7, 1), (-100, 1)), ((8, 9, 1), row))
    packed = pack_rows(batch)
    assert packed is not None
    assert packed.layout.groups == (RowGroup(1, 1), RowGroup(2, 2))
    assert packed.input_ids.tolist() == [7, 5, 6, 8, 9]
    assert packed.position_ids.tolist() == [[0, 0, 1, 0, 1]]


def test_a_common_beginning_is_computed_once() -> None:
    common = tuple(range(10, 30))
    ignored = (-100,) * 21
    batch = _batch(*(((*common, own, 1), (*ignored, 1)) for own in (3, 4, 5)))
    packed = pack_rows(batch, num_virtual_tokens=2)
    assert packed is not None
    assert packed.input_ids.tolist() == [*common, 3, 4, 5]
    assert packed.layout.prefix_length == 22
    apart = pack_rows(batch, num_virtual_tokens=2, shares_text=False)
    assert apart is not None
    assert len(apart.input_ids) == 3 * 21


@pytest.mark.parametrize("labels", [(-100, -100), (5, -100)])
def test_rows_with_nothing_to_compute_are_not_packed(labels: tuple[int, ...]) -> None:
    assert pack_rows(_batch(((5, 6), labels))) is None
