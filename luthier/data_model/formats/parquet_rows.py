"""Rows of a parquet file, a batch of them in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from luthier.data_model.formats.opening import StreamLimits
from luthier.data_model.formats.row import Row, shown
from luthier.data_model.formats.text_rows import require_columns
from luthier.errors import InvalidInputError, TrainingDataError

_BATCH_ROWS = 1024


def parquet_rows(
    file: BinaryIO, name: str, limits: StreamLimits, *, required_columns: Sequence[str] = ()
) -> Iterator[Row]:
    """Rows of a parquet file, in order. Cells keep their types; nulls are None.

    Args:
        file: Seekable.
        name: What messages call the file.
        limits: ``max_unpacked_bytes`` bounds what the file's own table of contents announces.
        required_columns: Must be in the schema.

    Yields:
        Rows.

    Raises:
        TrainingDataError: If the file is no parquet, is damaged or lacks a column.
        InvalidInputError: If it would unpack to too much.
    """
    # Heavy, and needed by those who read parquet alone.
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _require_size(table.metadata, name, limits)
            require_columns(table.schema_arrow.names, name, required_columns)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                for value in batch.to_pylist():
                    row += 1
                    yield Row(f"{name} row {row}", value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"{name} after row {row}" if row else name
        raise TrainingDataError(
            f"{where} cannot be read as parquet: {shown(str(error).strip())}"
        ) from error


def _require_size(metadata: Any, name: str, limits: StreamLimits) -> None:
    num_bytes = sum(
        metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)
    )
    if num_bytes > limits.max_unpacked_bytes:
        raise InvalidInputError(
            f"{name} unpacks to {num_bytes} bytes, at most {limits.max_unpacked_bytes} are allowed"
        )
