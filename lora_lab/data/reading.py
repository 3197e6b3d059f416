"""Rows of the user's files, one by one: JSON Lines, JSON arrays, CSV and Parquet, gzipped or not.

A reader yields a :class:`Row`, or a :class:`DataError` in its place where one row is bad and the next can still be
read; it raises where the file as a whole cannot be used. JSON Lines, CSV and Parquet are never held whole in memory,
and no row is parsed that is larger than ``ROW_BYTES``.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lora_lab.data.columns import Row, kind_of, snippet
from lora_lab.data.opening import opened
from lora_lab.data.tables import csv_rows, parquet_rows
from lora_lab.errors import DataError

ROW_BYTES = 16 * 2**20
"""The largest row that is read, in bytes (in characters inside a JSON array)."""
ARRAY_BYTES = 2**30
"""The largest JSON array: it is held whole while it is read."""

PIECE = 2**18
"""Characters of running text that are tokenised at once, to bound the memory it takes."""

_CHUNK = 1 << 20
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)


def rows(path: str, field: str = "data.path") -> Iterator[Row | DataError]:
    """The rows of a file by its kind: Parquet by its first bytes, CSV and TSV by name, else JSON (an array if it
    begins with ``[``, else lines). Blank lines are skipped.

    Raises:
        DataError: as :func:`lora_lab.data.opening.opened`; all blank; or a file whose rows cannot be told apart.
    """
    file = Path(path).expanduser()
    kind = Path(file.stem if file.suffix == ".gz" else file.name).suffix.lower()
    with opened(path, field) as stream:
        start = stream.peek(4)[:4]  # type: ignore[attr-defined]  # both streams are buffered
        if start == b"PAR1":
            yield from parquet_rows(file)
        elif kind in (".csv", ".tsv"):
            yield from csv_rows(file, _text_lines(file, stream), "\t" if kind == ".tsv" else ",")
        else:
            yield from _json(file, stream, field)


def text_pieces(path: str, field: str = "data.path") -> Iterator[str]:
    """The UTF-8 text of a file in pieces (:func:`pieces`); a byte-order mark is taken off.

    Raises:
        DataError: as :func:`lora_lab.data.opening.opened`; all blank, not UTF-8, or with NUL bytes.
    """
    file = Path(path).expanduser()
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held, line, blank = "", 1, True
    with opened(path, field) as stream:
        more = True
        while more:
            data = stream.read(_CHUNK)
            more = bool(data)
            try:
                held += decoder.decode(data, final=not more)
            except UnicodeDecodeError as error:
                raise _not_utf8(file, line + data.count(b"\n", 0, error.start), error) from error
            line += _checked(file, data, line)
            blank = blank and not held.strip()
            while len(held) > PIECE and (end := _cut(held)):
                yield held[:end]
                held = held[end:]
    if blank:
        raise _blank(file, field)
    yield held


def pieces(text: str) -> Iterator[str]:
    """A long text in pieces of about ``PIECE`` characters, cut where tokens do not join.

    A piece ends where the next line begins with something else than white space; a text without such a place is cut
    at four times that length.
    """
    while len(text) > PIECE and (end := _cut(text)):
        yield text[:end]
        text = text[end:]
    yield text


def _checked(file: Path, data: bytes, line: int) -> int:
    """The newlines in ``data``, which begins on ``line`` and must be text."""
    if b"\0" in data:
        line += data.count(b"\n", 0, data.index(0))
        raise DataError(f"{file} line {line}: {_NUL}")
    return data.count(b"\n")


_NUL = (
    "a NUL byte (0x00), so it is no UTF-8 text. It may be UTF-16 (iconv -f utf-16le -t utf-8), or another kind of file."
)


def _cut(text: str) -> int:
    """Where to cut ``text`` after a piece; 0 where more must be read first."""
    end = text.find("\n", PIECE) + 1
    while 0 < end < len(text) and text[end].isspace():
        end = text.find("\n", end) + 1
    if 0 < end < len(text):
        return end
    return 4 * PIECE if len(text) > 4 * PIECE else 0


def _not_utf8(file: Path, line: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{file} line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8. "
        f"Convert the file, e.g. iconv -f latin1 -t utf-8 {file.name} > utf8-{file.name}"
    )


def _blank(file: Path, field: str) -> DataError:
    size = file.stat().st_size
    return DataError(
        f"{field}: {file} is empty ({size} bytes, all blank). Give a file with data, or make this one again."
    )


# -- lines ---------------------------------------------------------------------------------------------------------


def _numbered(file: Path, stream: BinaryIO) -> Iterator[tuple[int, str | DataError]]:
    """The lines with something on them and their numbers; those that are too long or no UTF-8 text as errors."""
    number = 0
    while line := stream.readline(ROW_BYTES + 1):
        number += 1
        if len(line) > ROW_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            shown = snippet(line[:200].decode(errors="replace"))
            yield (
                number,
                DataError(
                    f"{file} line {number}: longer than {ROW_BYTES // 2**20} MiB: {shown} — divide it into rows."
                ),
            )
            continue
        if b"\0" in line:
            yield number, DataError(f"{file} line {number}: {_NUL}")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, _not_utf8(file, number, error)
            continue
        if text.strip():
            yield number, text


def _text_lines(file: Path, stream: BinaryIO) -> Iterator[str]:
    """Every line of a file whose lines cannot be read apart from one another.

    Raises:
        DataError: a line that is too long or no UTF-8 text.
    """
    number = 0
    while line := stream.readline(ROW_BYTES + 1):
        number += 1
        if len(line) > ROW_BYTES:
            raise DataError(f"{file} line {number}: longer than {ROW_BYTES // 2**20} MiB. Divide it into rows.")
        if b"\0" in line:
            raise DataError(f"{file} line {number}: {_NUL}")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(file, number, error) from error


def _json(file: Path, stream: BinaryIO, field: str) -> Iterator[Row | DataError]:
    start = stream.peek(1)[:4096]  # type: ignore[attr-defined]  # both streams are buffered
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _array(file, stream)
        return
    held: tuple[int, str | DataError] | None = None
    for after in _numbered(file, stream):
        if held is not None:
            yield _line(file, *held, last=False)
        held = after
    if held is None:
        raise _blank(file, field)
    yield _line(file, *held, last=held[0] > 1)


def _line(file: Path, number: int, line: str | DataError, last: bool) -> Row | DataError:
    if isinstance(line, DataError):
        return line
    place = f"{file} line {number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        remedy = "Each line must be one JSON object; for objects over several lines put all in one array [ ... ]."
        if last:
            remedy = "It is the last line: the file may be cut off; copy it again, or delete the line."
        return DataError(f"{place}: not JSON ({_reason(error)}): {snippet(line.strip())} — {remedy}")
    if not isinstance(value, dict):
        return DataError(
            f"{place}: expected an object, found {kind_of(value)}. Each line must be an object of columns."
        )
    return Row(place, value)


# -- arrays --------------------------------------------------------------------------------------------------------


def _array(file: Path, stream: BinaryIO) -> Iterator[Row | DataError]:
    """The elements of a JSON array, found one by one, so that none has to be parsed to get past it."""
    data = stream.read(ARRAY_BYTES + 1)
    if len(data) > ARRAY_BYTES:
        raise DataError(
            f"{file}: a JSON array of more than {ARRAY_BYTES // 2**20} MiB, which must be held whole in memory. "
            "Write it as JSON Lines, one object on each line."
        )
    _checked(file, data, 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(file, 1 + data.count(b"\n", 0, error.start), error) from error
    del data
    number, start, depth = 0, text.index("[") + 1, 0
    for token in _TOKEN.finditer(text):
        sign = token[0]
        if sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        if (sign == "," and depth == 1) or depth == 0:
            number += 1
            yield from _element(file, text, start, token.start(), number, last=depth == 0)
            start = token.end()
        if depth == 0:
            break
    if depth:
        raise _not_an_array(file, _line_of(text, start), "it does not end")
    if text[start:].strip():
        raise _not_an_array(file, _line_of(text, start), "more follows the array")


def _element(file: Path, text: str, start: int, end: int, number: int, *, last: bool) -> Iterator[Row | DataError]:
    place = f"{file} record {number}"
    if end - start > ROW_BYTES:
        yield DataError(f"{place}: longer than {ROW_BYTES // 2**20} MiB of characters. Divide it.")
        return
    element = text[start:end].strip()
    if not element and last and number == 1:
        raise DataError(f"{file}: the JSON array is empty; it must hold at least one record.")
    try:
        value = json.loads(element)
    except (ValueError, RecursionError) as error:
        below = error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0
        yield _not_an_array(file, _line_of(text, start) + below, _reason(error))
        return
    if isinstance(value, dict):
        yield Row(place, value)
    else:
        yield DataError(
            f"{place}: expected an object, found {kind_of(value)}. Each record must be an object of columns."
        )


def _line_of(text: str, start: int) -> int:
    """The line of the first sign after ``start`` that is no white space."""
    while start < len(text) and text[start].isspace():
        start += 1
    return 1 + text.count("\n", 0, start)


def _not_an_array(file: Path, line: int, reason: str) -> DataError:
    return DataError(
        f"{file} line {line}: not JSON ({reason}). The file starts with '[', so all of it must be one JSON array; "
        "it may be cut off. For JSON Lines, put one object on each line."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
