"""Prompts and their completions in two columns, ``prompt`` and ``completion``; nothing of either is changed."""

from __future__ import annotations

from lora_lab.data.columns import Row, column
from lora_lab.data.records import Instruction
from lora_lab.spec import Pairs

COLUMNS = ("prompt", "completion", "task")


def record(row: Row, columns: Pairs) -> Instruction:
    """One row as an instruction without input.

    Raises:
        DataError: a column is missing or not a string.
    """
    return Instruction(
        instruction=column(row, "prompt", columns),
        input="",
        output=column(row, "completion", columns),
        task=column(row, "task", columns, default=""),
    )
