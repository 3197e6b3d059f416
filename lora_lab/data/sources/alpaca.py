"""Instruction data in the columns of Stanford Alpaca: ``instruction``, ``input`` (optional), ``output``.

``columns`` maps other names; a ``task`` column, where there is one, is kept for scores by
task. An input that only says there is none (``Noinput``, ``<no input>``, ``No input required.``, as 79 of the first
5,000 Alpaca records do) counts as empty. Nothing else is changed: leading spaces and newlines are part of the data.
"""

from __future__ import annotations

import re

from lora_lab.data.columns import Row, column
from lora_lab.data.records import Instruction
from lora_lab.spec import Pairs

COLUMNS = ("instruction", "input", "output", "task")

_NO_INPUT = re.compile(
    r"""[\s"'`<(\[]*(no\s*input(\s+(required|needed|provided))?|n/a|none)[\s"'`>)\].]*""", re.IGNORECASE
)


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
