"""Opening the user's files: only real files, never more than they may hold, and packed ones unpacked in bounds.

Whatever is wrong is said with the file, what was found and a remedy. Nothing here trusts a size that a file states.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from lora_lab.errors import DataError, nearest

UNPACKED_BYTES = 64 * 2**20
"""A gzip file may always unpack to this much …"""
UNPACKED_RATIO = 200
"""… and else to this many times its own size; text packs four to thirty times."""

_CHUNK = 1 << 20
_PACKED = {b"PK\x03\x04": "zip archive", b"\xfd7zXZ": "xz file", b"BZh": "bzip2 file", b"\x28\xb5\x2f\xfd": "zstd file"}
_WIDE = (b"\xff\xfe", b"\xfe\xff")


@contextlib.contextmanager
def opened(path: str, field: str = "data.path") -> Iterator[BinaryIO]:
    """The bytes of a file, those of a gzip file unpacked as they are read.

    Raises:
        DataError: no such file, a folder, a device or pipe, unreadable, of zero bytes, UTF-16, packed in another way,
            or (while it is read) a damaged gzip file or one that unpacks to far more than text does.
    """
    file = Path(path).expanduser()
    with _refusals(file, field), file.open("rb") as raw:
        about = os.fstat(raw.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise DataError(
                f"{field}: {file} is no regular file but a device or a pipe. Save its data to a file first."
            )
        start = raw.peek(8)[:8]
        if not start:
            raise DataError(f"{field}: {file} is empty (0 bytes). Give a file with data, or make this one again.")
        for magic, kind in _PACKED.items():
            if start.startswith(magic):
                raise DataError(f"{field}: {file} is a {kind}. Unpack it, or pack it with gzip.")
        if start.startswith(_WIDE):
            raise DataError(
                f"{file} is UTF-16, not UTF-8. Convert it: iconv -f utf-16 -t utf-8 {file.name} > utf8-{file.name}"
            )
        if not start.startswith(b"\x1f\x8b"):
            yield raw
            return
        limit = max(UNPACKED_BYTES, UNPACKED_RATIO * about.st_size)
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield io.BufferedReader(_Bounded(cast(BinaryIO, unpacked), limit, file), _CHUNK)


def content_digest(path: str, field: str = "data.path") -> str:
    """SHA-256 (hex) of a file as it lies on disk; kept in memory until the file changes.

    Raises:
        DataError: it cannot be opened.
    """
    file = Path(path).expanduser()
    with _refusals(file, field):
        about = file.stat()
    return _digest(str(file.absolute()), field, about.st_size, about.st_mtime_ns, about.st_ino)


@functools.lru_cache(maxsize=256)
def _digest(path: str, field: str, size: int, changed: int, inode: int) -> str:
    file = Path(path)
    with _refusals(file, field), file.open("rb") as raw:
        if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            raise DataError(
                f"{field}: {file} is no regular file but a device or a pipe. Save its data to a file first."
            )
        return hashlib.file_digest(raw, "sha256").hexdigest()


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than ``limit`` bytes."""

    def __init__(self, inner: BinaryIO, limit: int, file: Path) -> None:
        self._inner, self._limit, self._file, self._given = inner, limit, file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the base takes any writable buffer
        data = self._inner.read(min(len(buffer), _CHUNK))
        self._given += len(data)
        if self._given > self._limit:
            raise DataError(
                f"{self._file}: unpacks to more than {self._limit / 2**20:,.0f} MiB, {UNPACKED_RATIO} times its own "
                "size: no text packs like that. If it is what you want, unpack it by hand."
            )
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _refusals(file: Path, field: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(_not_there(file, field)) from error
    except IsADirectoryError as error:
        inside = sorted(p.name for p in file.iterdir() if p.is_file())[:5]
        remedy = f"give a file in it: {', '.join(inside)}" if inside else "it holds no files"
        raise DataError(f"{field}: {file} is a folder; {remedy}.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{field}: {file} is a damaged gzip file ({error}). Copy it again, or unpack it by hand."
        ) from error
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{field}: {file} cannot be read ({cause}). Check the path and its permissions.") from error


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
