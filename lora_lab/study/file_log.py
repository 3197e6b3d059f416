"""The study's log as a file in the sweep's folder: for one machine, or a shared file system with working locks."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from lora_lab.files import folder_errors
from lora_lab.study.lines import Lines, file_lock
from lora_lab.study.log import Append, Event

FILE = "study.log"
REMEDY = (
    "Move the file away and start the sweep again: it is made anew from runs/*/result.json and study.journal, "
    "and only unfinished runs are trained."
)


class FileLog:
    """``study.log`` (JSON lines, fsynced, under its lock) and ``workers/<id>``, eight bytes that a worker counts up."""

    def __init__(self, folder: Path) -> None:
        """Open or create the log in ``folder``.

        Raises:
            SweepFolderError: it cannot be written there.
        """
        self._lines = Lines(folder / FILE, durable=True, remedy=REMEDY)
        self._workers = folder / "workers"
        self._mirror = folder / ".mirror.lock"

    def read(self, start: int) -> list[Event]:
        """See :class:`~lora_lab.study.log.Log`."""
        return list(self._lines.read(start))

    @contextlib.contextmanager
    def exclusive(self, meanwhile: Callable[[], object] | None = None) -> Iterator[Append]:
        """See :class:`~lora_lab.study.log.Log`."""
        with self._lines.locked(meanwhile) as file:

            def append(events: Sequence[Event]) -> None:
                self._lines.append(file, events)

            yield append

    def beat(self, worker: str) -> None:
        """See :class:`~lora_lab.study.log.Log`. The file is opened anew, so that a network file system shows it."""
        path = self._workers / worker
        with folder_errors(path):
            self._workers.mkdir(exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(file, struct.pack("<q", _count(os.pread(file, 8, 0)) + 1), 0)
                os.fsync(file)
            finally:
                os.close(file)

    def beats(self, workers: Collection[str]) -> dict[str, int]:
        """See :class:`~lora_lab.study.log.Log`."""
        found: dict[str, int] = {}
        for name in workers:
            with contextlib.suppress(FileNotFoundError):  # it has not begun, or was forgotten meanwhile
                found[name] = _count((self._workers / name).read_bytes())
        return found

    def forget(self, worker: str) -> None:
        """See :class:`~lora_lab.study.log.Log`."""
        (self._workers / worker).unlink(missing_ok=True)

    @contextlib.contextmanager
    def mirroring(self) -> Iterator[bool]:
        """See :class:`~lora_lab.study.log.Log`."""
        with file_lock(self._mirror, wait=False) as mine:
            yield mine

    def close(self) -> None:
        """Nothing is held open."""


def _count(data: bytes) -> int:
    return int(struct.unpack("<q", data)[0]) if len(data) == 8 else 0
