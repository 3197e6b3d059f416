"""Rows and their columns: what a source asks of one, and what is said where it is not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import DataError, nearest
from lora_lab.spec import Pairs

CELL_CHARACTERS = 2**20
"""A prompt, a response or a turn has at most this many characters: more than any context holds."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "instruction": ("prompt", "question", "query", "text", "context"),
    "input": ("context", "passage", "document"),
    "output": ("response", "completion", "answer", "target", "label", "chosen"),
    "prompt": ("instruction", "question", "query", "context", "input"),
    "completion": ("response", "output", "answer", "target", "label", "chosen"),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "turns"),
    "text": ("content", "document", "body", "passage"),
}
"""What others call these columns; used for guesses in messages only, never to read a file."""
_SHOWN_NAMES = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file and where it stands, e.g. ``train.jsonl line 214``."""

    place: str
    values: Mapping[str, Any]


def column(row: Row, wanted: str, columns: Pairs, default: str | None = None, limit: int = CELL_CHARACTERS) -> str:
    """The string in the column that ``columns`` maps ``wanted`` to (itself where it is not mapped).

    ``default`` stands in for a column that is absent or null and was not mapped by hand.

    Raises:
        DataError: the column is missing, null, not a string, longer than ``limit`` characters, or no text at all.
    """
    value = cell(row, wanted, columns, optional=default is not None)
    if value is None and default is not None:
        return default
    name = dict(columns).get(wanted, wanted)
    if not isinstance(value, str):
        raise DataError(
            f'{row.place}: "{name}" must be a string, found {kind_of(value)}. Put the text in quotes there.'
        )
    return text_of(row.place, name, value, limit)


def text_of(place: str, name: str, value: str, limit: int = CELL_CHARACTERS) -> str:
    """``value``, if it is text that can be tokenised.

    Raises:
        DataError: longer than ``limit`` characters, or half of a surrogate pair in it.
    """
    if len(value) > limit:
        raise DataError(
            f'{place}: "{name}" has {len(value):,} characters, and at most {limit:,} are taken. '
            "Shorten it, divide it into several rows, or use data.name=text for running text."
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f'{place}: "{name}" holds {value[error.start]!r}, half of a character, so it is no text. '
                "Mend or delete the line."
            ) from error
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
    guess = _guess(wanted, row.values, columns)
    raise DataError(
        f'{row.place}: "{name}"{asked} is missing; columns found: {names_of(row.values)}. '
        f"Map it with data.columns.{wanted}={guess}."
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


def names_of(names: Iterable[Any]) -> str:
    """Names for a message: the first few, each short and printable."""
    shown = [snippet(str(name), 40) for name in names]
    more = f" and {len(shown) - _SHOWN_NAMES} more" if len(shown) > _SHOWN_NAMES else ""
    return ", ".join(shown[:_SHOWN_NAMES]) + more or "none"


def snippet(text: str, length: int = 60) -> str:
    """The beginning of a text for a message; what would move a terminal's cursor is shown as a dot."""
    short = text if len(text) <= length else f"{text[: length - 3]}..."
    return "".join(sign if sign.isprintable() else "·" for sign in short)


def kind_of(value: Any) -> str:
    """A value for a message: its JSON kind, and itself where it is short."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"{kind} of {len(value)}"
    if isinstance(value, str):
        value = value[:64]
    try:
        text = json.dumps(value, default=str)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        return kind
    return f"{kind} ({text})" if len(text) <= 40 else f"{kind} ({text[:37]}...)"


def _guess(wanted: str, found: Mapping[str, Any], columns: Pairs) -> str:
    taken = {value for name, value in columns if name != wanted}
    lowered = {name.lower(): name for name in found if name not in taken and len(name) <= 40}
    for alias in (wanted, *_ALIASES.get(wanted, ())):
        if alias in lowered:
            return lowered[alias]
    return "NAME"
