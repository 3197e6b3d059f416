"""Running text: a plain UTF-8 file taken as one stream, or the ``text`` column of a table, a document a row.

It is cut into blocks of ``max_length`` tokens when it is tokenised; nothing is lost between them.
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_lab.data.columns import Row, column
from lora_lab.data.reading import ROW_BYTES, text_pieces
from lora_lab.data.records import Passage
from lora_lab.spec import Pairs

COLUMNS = ("text",)

_TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def is_table(path: str) -> bool:
    """Whether a file holds documents in a column, by its name."""
    return path.lower().removesuffix(".gz").endswith(_TABLES)


def passages(path: str, field: str = "data.path") -> Iterator[Passage]:
    """A plain text file as it stands, in pieces.

    Raises:
        DataError: see :func:`lora_lab.data.reading.text_pieces`.
    """
    for i, piece in enumerate(text_pieces(path, field)):
        yield Passage(piece, goes_on=i > 0)


def record(row: Row, columns: Pairs) -> Passage:
    """One row as a document.

    Raises:
        DataError: the column is missing or not a string.
    """
    return Passage(column(row, "text", columns, limit=ROW_BYTES))
