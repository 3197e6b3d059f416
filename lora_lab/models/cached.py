"""What the cache holds, and how it is emptied while others may be using it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_lab.models.cache import CacheError, cache_folder

KINDS = {
    "models": "base models converted from a package",
    "quantised": "base models in 4 or 8 bits",
    "shared": "base models as the processes of this machine map them",
    "tokens": "tokenised data",
    "tasks": "benchmark tasks",
    "kernels": "the packed step's kernels, built for this processor",
    "speed": "this machine's rate of matrix products",
}
"""The folders of the cache, and what is in them. All of it is made again when it is needed."""


@dataclass(frozen=True)
class Held:
    """How many entries of a kind there are, and their bytes on the disk."""

    kind: str
    entries: int
    size: int


def held() -> list[Held]:
    """What there is of each kind, those without any left out."""
    found = []
    for kind in KINDS:
        entries = list(_entries(kind))
        if entries:
            found.append(Held(kind, len(entries), sum(map(_size, entries))))
    return found


def clear(kind: str) -> tuple[Held, int]:
    """Remove the entries of a kind; returns what was removed, and how many were left because they are being made.

    Processes that have mapped a file keep what they have until they end.

    Raises:
        CacheError: no permission.
    """
    from filelock import FileLock, Timeout

    removed = size = busy = 0
    for entry in _entries(kind):
        try:
            with FileLock(entry.with_suffix(".lock"), timeout=0):
                size += _size(entry)
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
            removed += 1
        except Timeout:
            busy += 1
        except OSError as error:
            raise CacheError(
                f"{entry}: {error.strerror or error}. Ask its owner, or use another place with LORA_LAB_CACHE=FOLDER."
            ) from error
    return Held(kind, removed, size), busy


def _entries(kind: str) -> Iterator[Path]:
    folder = cache_folder() / kind
    return (entry for entry in folder.iterdir() if entry.suffix != ".lock") if folder.is_dir() else iter(())


def _size(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else (entry,)
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())
