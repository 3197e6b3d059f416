"""Reading the user's files: whatever is wrong with one is said with the file, the line, what was found and a remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.errors import DataError, nearest
from lora_lab.spec import Pairs

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "instruction": ("prompt", "question", "query", "text", "context"),
    "input": ("context", "passage", "document"),
    "output": ("response", "completion", "answer", "target", "label", "chosen"),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "turns"),
}
"""What others call these columns; used for guesses in messages only, never to read a file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file and where it stands, e.g. ``train.jsonl line 214``."""

    place: str
    values: Mapping[str, Any]


def read_text(path: str, field: str = "data.path") -> str:
    """The UTF-8 text of a file (a byte-order mark is taken off).

    Raises:
        DataError: no such file, a folder, unreadable, empty, or not UTF-8.
    """
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(_not_there(file, field)) from error
    except IsADirectoryError as error:
        inside = sorted(p.name for p in file.iterdir() if p.is_file())[:5]
        remedy = f"give a file in it: {', '.join(inside)}" if inside else "it holds no files"
        raise DataError(f"{field}: {file} is a folder; {remedy}.") from error
    except OSError as error:
        raise DataError(
            f"{field}: {file} cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} line {line}: byte 0x{data[error.start]:02x} is not UTF-8. "
            f"Convert the file, e.g. iconv -f latin1 -t utf-8 {file.name} > utf8-{file.name}"
        ) from error
    if not text.strip():
        found = f"{len(data)} bytes, all blank" if data else "0 bytes"
        raise DataError(f"{field}: {file} is empty ({found}). Give a file with data, or make this one again.")
    return text


def read_rows(path: str, field: str = "data.path") -> list[Row]:
    """The objects of a JSON array or of a JSON Lines file (told apart by the first character); blank lines are skipped.

    Raises:
        DataError: as :func:`read_text`; or a line that is not JSON, or is not an object.
    """
    text = read_text(path, field)
    file = Path(path).expanduser()
    return _array(file, text) if text.lstrip().startswith("[") else _lines(file, text)


def column(row: Row, wanted: str, columns: Pairs, default: str | None = None) -> str:
    """The string in the column that ``columns`` maps ``wanted`` to (itself where it is not mapped).

    ``default`` stands in for a column that is absent or null and was not mapped by hand.

    Raises:
        DataError: the column is missing, null, or not a string.
    """
    value = cell(row, wanted, columns, optional=default is not None)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        name = dict(columns).get(wanted, wanted)
        raise DataError(
            f'{row.place}: "{name}" must be a string, found {kind_of(value)}. Put the text in quotes there.'
        )
    return value


def cell(row: Row, wanted: str, columns: Pairs, *, optional: bool = False) -> Any:
    """The value in the column that ``columns`` maps ``wanted`` to; ``None`` where an optional one is absent.

    Raises:
        DataError: the column is missing; the columns found are listed with how to map one.
    """
    mapped = dict(columns).get(wanted)
    name = mapped or wanted
    if name in row.values:
        return row.values[name]
    if optional and mapped is None:
        return None
    asked = f" (data.columns.{wanted})" if mapped else ""
    found = ", ".join(row.values) or "none"
    guess = _guess(wanted, row.values, columns)
    raise DataError(
        f'{row.place}: "{name}"{asked} is missing; columns found: {found}. Map it with data.columns.{wanted}={guess}.'
    )


def check_columns(columns: Pairs, known: Sequence[str], source: str) -> None:
    """Refuse a mapping of a column that the source never reads.

    Raises:
        DataError: names the nearest column it does read.
    """
    for name, value in columns:
        if name not in known:
            raise DataError(
                f"data.columns.{name}: data.name={source} reads no such column{nearest(name, known)} "
                f"It reads {', '.join(known)}."
            )
        if not isinstance(value, str) or not value:
            raise DataError(
                f"data.columns.{name}: must be the name of a column in the file, found {value!r}. "
                f"Write e.g. data.columns.{name}=text."
            )


def kind_of(value: Any) -> str:
    """A value for a message: its JSON kind, and itself where it is short."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    text = json.dumps(value, default=str)
    return f"{kind} ({text})" if len(text) <= 40 else f"{kind} ({text[:37]}...)"


def _array(file: Path, text: str) -> list[Row]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(_not_json(file, error)) from error
    rows = []
    for i, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(
                f"{file} record {i}: expected an object, found {kind_of(value)}. "
                "Each record must be an object of columns."
            )
        rows.append(Row(f"{file} record {i}", value))
    if not rows:
        raise DataError(f"{file}: the JSON array is empty; it must hold at least one record.")
    return rows


def _lines(file: Path, text: str) -> list[Row]:
    rows = []
    lines = text.split("\n")  # not splitlines: U+2028 and its like may stand inside a JSON string
    last = max(i for i, line in enumerate(lines, start=1) if line.strip())
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            shown = line.strip() if len(line.strip()) <= 60 else f"{line.strip()[:57]}..."
            remedy = "Each line must be one JSON object; for objects over several lines put all in one array [ ... ]."
            if i == last and i > 1:
                remedy = "It is the last line: the file may be cut off; copy it again, or delete the line."
            raise DataError(f"{file} line {i}: not JSON ({_reason(error)}): {shown} — {remedy}") from error
        if not isinstance(value, dict):
            raise DataError(
                f"{file} line {i}: expected an object, found {kind_of(value)}. Each line must be an object of columns."
            )
        rows.append(Row(f"{file} line {i}", value))
    return rows


def _reason(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _not_json(file: Path, error: ValueError) -> str:
    line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
    return (
        f"{file}{line}: not JSON ({_reason(error)}). The file starts with '[', so all of it must be one JSON array; "
        "it may be cut off. For JSON Lines, put one object on each line."
    )


def _not_there(file: Path, field: str) -> str:
    folder = file.parent
    if not folder.is_dir():
        return (
            f"{field}: {file} does not exist, nor does its folder {folder.absolute()}. Give the path of the data file."
        )
    beside = sorted(p.name for p in folder.iterdir() if p.is_file())
    return (
        f"{field}: {file} does not exist in {folder.absolute()}{nearest(file.name, beside)} "
        "Give the path of the data file; a relative one starts at the current folder."
    )


def _guess(wanted: str, found: Mapping[str, Any], columns: Pairs) -> str:
    taken = {value for name, value in columns if name != wanted}
    free = [name for name in found if name not in taken]
    lowered = {name.lower(): name for name in free}
    for alias in (wanted, *_ALIASES.get(wanted, ())):
        if alias in lowered:
            return lowered[alias]
    return "NAME"
