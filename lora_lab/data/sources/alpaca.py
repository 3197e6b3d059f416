"""Instruction data in the columns of Stanford Alpaca: ``instruction``, ``input`` (optional), ``output``.

A JSON array or JSON Lines. ``columns`` maps other names; a ``task`` column, where there is one, is kept for scores by
task. An input that only says there is none (``Noinput``, ``<no input>``, ``No input required.``, as 79 of the first
5,000 Alpaca records do) counts as empty. Nothing else is changed: leading spaces and newlines are part of the data.
"""

from __future__ import annotations

import re

from lora_lab.data.reading import Row, check_columns, column, read_rows
from lora_lab.data.records import Instruction
from lora_lab.spec import Pairs

COLUMNS = ("instruction", "input", "output", "task")

_NO_INPUT = re.compile(
    r"""[\s"'`<(\[]*(no\s*input(\s+(required|needed|provided))?|n/a|none)[\s"'`>)\].]*""", re.IGNORECASE
)


def read(path: str, columns: Pairs, field: str = "data.path") -> list[Instruction]:
    """The records of a file, in its order.

    Raises:
        DataError: see :func:`lora_lab.data.reading.read_rows` and :func:`lora_lab.data.reading.column`.
    """
    check_columns(columns, COLUMNS, "alpaca")
    return [record(row, columns) for row in read_rows(path, field)]


def record(row: Row, columns: Pairs) -> Instruction:
    """One row as an instruction.

    Raises:
        DataError: a column is missing or not a string.
    """
    text = column(row, "input", columns, default="")
    return Instruction(
        instruction=column(row, "instruction", columns),
        input="" if _NO_INPUT.fullmatch(text) else text,
        output=column(row, "output", columns),
        task=column(row, "task", columns, default=""),
    )
