"""Text formats are read line by line, and a bad line is named."""

import io
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data_model.formats import text_rows
from luthier.data_model.formats.opening import StreamLimits
from luthier.data_model.formats.row import Row
from luthier.data_model.formats.text_rows import (
    csv_rows,
    json_array_rows,
    json_lines_rows,
    plain_text_rows,
)
from luthier.errors import InvalidInputError, TrainingDataError

Reader = Callable[[io.BytesIO, str, StreamLimits], Iterator[Row]]


def _read(reader: Reader, text: str | bytes, **limits: int) -> list[Row]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(reader(io.BytesIO(data), "f", StreamLimits(**limits)))


def test_rows_say_where_they_are() -> None:
    assert _read(json_lines_rows, '\n{"a": 1}\n\n{"a": 2}')[1] == Row("f row 2", {"a": 2})
    assert _read(json_array_rows, "[7, 8]")[1] == Row("f row 2", 8)
    row = _read(csv_rows, 'a,b\n"x\ny",1\nz\n')[1]
    assert row == Row("f row 2 (line 4)", {"a": "z", "b": None})


@pytest.mark.parametrize("reader", [json_lines_rows, json_array_rows, csv_rows, plain_text_rows])
def test_bytes_that_are_no_utf8_are_refused(reader: Reader) -> None:
    with pytest.raises(TrainingDataError, match="0xff at position 1 of a block is not UTF-8"):
        _read(reader, b"a\xff\n")


@pytest.mark.parametrize("reader", [json_lines_rows, csv_rows, plain_text_rows])
def test_an_endless_line_is_refused_before_it_is_read(reader: Reader) -> None:
    with pytest.raises(TrainingDataError, match="f line 2 is longer than 100 characters"):
        _read(reader, '"a"\n' + "b" * 1000, max_row_chars=100)


def test_a_json_array_larger_than_memory_may_hold_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="more than 10 bytes"):
        _read(json_array_rows, "[" + "1," * 10 + "1]", max_json_bytes=10)


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (json_lines_rows, "1\n{oops\n", "f line 2 is not JSON"),
        (json_lines_rows, "[" * 100_000, "nested too deeply|not JSON"),
        (json_lines_rows, "1" * 5000, "f line 1 is not JSON"),
        (json_array_rows, "{}", "must hold a JSON array"),
        (csv_rows, "", "f is empty"),
        (csv_rows, "a,a\n1,2\n", "column 'a' is in the header twice"),
        (csv_rows, "a,b\n1,2,3\n", r"f row 1 \(line 2\) has more cells than the 2 columns"),
        (csv_rows, 'a\n"x"y\n', "f line 2"),
        (csv_rows, 'a\n"x\n', "f line 2"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(
    reader: Reader, text: str, message: str
) -> None:
    with pytest.raises(TrainingDataError, match=message):
        _read(reader, text)


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(TrainingDataError, match=r"column 'b' is missing.*a, c"):
        list(csv_rows(io.BytesIO(b"a,c\n"), "f", StreamLimits(), required_columns=("a", "b")))


def test_a_csv_cell_may_be_longer_than_the_csv_module_thinks() -> None:
    (row,) = _read(csv_rows, "a\n" + "x" * 200_000 + "\n")
    assert row.value == {"a": "x" * 200_000}


@given(st.text(alphabet="ab\n ☕", max_size=60), st.integers(min_value=1, max_value=20))
def test_blocks_of_a_plain_text_joined_are_the_text(text: str, block_chars: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_rows, "TEXT_BLOCK_CHARS", block_chars)
        blocks = [row.value["text"] for row in _read(plain_text_rows, text)]  # type: ignore[index]
    joined = "".join(blocks)
    assert joined == text or (text.startswith(joined) and not text[len(joined) :].strip())
    assert all(block.endswith("\n") for block in blocks[:-1])
