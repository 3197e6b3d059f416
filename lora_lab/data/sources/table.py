"""Rows whose kind is not said (the hub's, a function's): read by the columns that they have.

``messages`` as in :mod:`~lora_lab.data.sources.chat`, ``prompt`` and ``completion`` as in
:mod:`~lora_lab.data.sources.completion`, ``text`` without an output as running text, otherwise ``instruction``,
``input`` and ``output`` as in :mod:`~lora_lab.data.sources.alpaca`.
"""

from __future__ import annotations

from lora_lab.data.columns import Row
from lora_lab.data.records import Record
from lora_lab.data.sources import alpaca, chat, completion, text
from lora_lab.spec import Pairs

COLUMNS = tuple(dict.fromkeys((*alpaca.COLUMNS, *chat.COLUMNS, *completion.COLUMNS, *text.COLUMNS)))


def record(row: Row, columns: Pairs) -> Record:
    """One row as what its columns make it.

    Raises:
        DataError: a column is missing or not a string.
    """
    names = dict(columns)
    if names.get("messages", "messages") in row.values:
        return chat.record(row, columns)
    if all(names.get(name, name) in row.values for name in ("prompt", "completion")):
        return completion.record(row, columns)
    if names.get("output", "output") not in row.values and names.get("text", "text") in row.values:
        return text.record(row, columns)
    return alpaca.record(row, columns)
