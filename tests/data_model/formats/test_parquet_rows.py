"""Parquet is read in batches, and damaged files are refused."""

import io

import pyarrow
import pyarrow.parquet
import pytest

from luthier.data_model.formats.opening import StreamLimits
from luthier.data_model.formats.parquet_rows import parquet_rows
from luthier.data_model.formats.row import Row
from luthier.errors import InvalidInputError, TrainingDataError


def _parquet(**columns: list[object]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, row_group_size=1000)
    return buffer.getvalue()


def _read(data: bytes, limits: StreamLimits | None = None) -> list[Row]:
    return list(parquet_rows(io.BytesIO(data), "f", limits or StreamLimits()))


def test_cells_keep_their_types() -> None:
    messages = [{"role": "user", "content": "hi"}]
    rows = _read(_parquet(a=["x", None], n=[1, 2], messages=[messages, messages]))
    assert rows[0] == Row("f row 1", {"a": "x", "n": 1, "messages": messages})
    assert rows[1].value == {"a": None, "n": 2, "messages": messages}


def test_rows_are_counted_over_batches_and_groups() -> None:
    rows = _read(_parquet(n=list(range(2500))))
    assert [row.value["n"] for row in rows] == list(range(2500))  # type: ignore[index]
    assert rows[-1].place == "f row 2500"


@pytest.mark.parametrize("cut", [0, 3, 50, -5])
def test_a_damaged_file_is_refused(cut: int) -> None:
    whole = _parquet(a=["x"] * 100)
    with pytest.raises(TrainingDataError, match="f cannot be read as parquet"):
        _read(whole[:cut])


def test_damage_in_the_middle_names_the_row_before_it() -> None:
    data = bytearray(_parquet(n=list(range(5000))))
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    with pytest.raises(TrainingDataError, match=r"f (after row \d+ )?cannot be read as parquet"):
        _read(bytes(data))


def test_a_file_that_unpacks_to_too_much_is_refused_by_its_table_of_contents() -> None:
    bomb = _parquet(a=["x" * 10_000] * 1000)
    with pytest.raises(InvalidInputError, match="at most 1000 are allowed"):
        _read(bomb, StreamLimits(max_unpacked_bytes=1000))


def test_a_missing_column_is_named() -> None:
    data = io.BytesIO(_parquet(a=["x"]))
    with pytest.raises(TrainingDataError, match="column 'b' is missing"):
        list(parquet_rows(data, "f", StreamLimits(), required_columns=("b",)))
