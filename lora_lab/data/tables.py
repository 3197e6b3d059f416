"""Rows of CSV and Parquet files, a few at a time. A CSV file's first line names its columns."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_lab.data.columns import CELL_CHARACTERS, Row, names_of
from lora_lab.errors import DataError

GROUP_BYTES = 4 * 2**30
"""The largest row group of a Parquet file, in its own account."""
_ROWS_AT_ONCE = 64


def csv_rows(file: Path, lines: Iterator[str], delimiter: str) -> Iterator[Row | DataError]:
    """The rows of a CSV file (RFC 4180: quoted cells may hold newlines); every value is a string.

    Raises:
        DataError: no lines, or two columns of one name.
    """
    with _wide_cells():
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = next((cells for cells in _cells(file, reader) if not isinstance(cells, DataError)), None)
        if not header or not any(name.strip() for name in header):
            raise DataError(f"{file}: has no line with the names of its columns. Add one, e.g. instruction,output")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{file} line 1: columns named twice: {names_of(twice)}. Rename one of each.")
        for cells in _cells(file, reader):
            place = f"{file} line {reader.line_num}"
            if isinstance(cells, DataError):
                yield cells
            elif len(cells) == len(header):
                yield Row(place, dict(zip(header, cells, strict=True)))
            elif cells:
                yield DataError(
                    f"{place}: {len(cells)} cells, and the first line names {len(header)} columns "
                    f"({names_of(header)}). A cell with a comma or a newline in it must stand in quotes."
                )


def parquet_rows(file: Path) -> Iterator[Row | DataError]:
    """The rows of a Parquet file.

    Raises:
        DataError: it is damaged, or a row group of it is too large to read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            about = table.metadata
            largest = max((about.row_group(i).total_byte_size for i in range(about.num_row_groups)), default=0)
            if largest > GROUP_BYTES or largest < 0:
                raise DataError(
                    f"{file}: has a row group of {largest / 2**30:,.1f} GiB. Write it again with smaller row groups."
                )
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{file} row {number}", values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{file}: cannot be read as Parquet ({reason}). Copy it again, or write it again.") from error


def _cells(file: Path, reader: Any) -> Iterator[list[str] | DataError]:
    while True:
        try:
            cells: list[str] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield DataError(
                f"{file} line {reader.line_num}: no CSV ({error}). A quote inside a quoted cell is written twice, "
                f"and a cell has at most {CELL_CHARACTERS:,} characters."
            )
            continue
        yield cells


@contextlib.contextmanager
def _wide_cells() -> Iterator[None]:
    """Cells of ``CELL_CHARACTERS`` while a file is read; the csv module has one limit for the whole process."""
    before = csv.field_size_limit(CELL_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)
