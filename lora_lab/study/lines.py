"""A file of JSON lines that several processes append to, and that survives a kill, a full disk and a torn last line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_lab.errors import StorageError
from lora_lab.files import folder_errors

TURN_SECONDS = 0.03
"""About how often somebody who waits for a lock asks for it, where there is something to do meanwhile."""
POLL_SECONDS = 1.0
"""How long somebody asks for a lock, which those who wait in the kernel's queue get first, before they wait there."""

log = logging.getLogger(__name__)


class Lines:
    """One JSON object a line, appended under the kernel's lock on the file itself (``flock``).

    A killed process gives that lock back at once. A torn last line (the writer was killed, the disk was full) is cut
    back before the next write instead of spoiling the file for ever. With ``durable`` every append is fsynced.
    """

    def __init__(self, path: Path, *, durable: bool, remedy: str, writes: bool = True) -> None:
        """Open or create ``path``; cut a torn last line back. ``remedy`` ends the message about a spoilt file.

        Without ``writes`` nothing is touched, and a file that is not there is found out when it is read.

        Raises:
            SweepFolderError: the file cannot be created or written.
        """
        self.path = path
        self._durable = durable
        self._remedy = remedy
        self._ends = [0]
        if writes:
            with self.locked() as file:
                _cut_torn_line(file, path)

    def read(self, start: int) -> Iterator[Any]:
        """Yield the entries from number ``start`` on.

        A last line without its end is being written by somebody else: it is left for the next read.

        Raises:
            StorageError: a line in the middle is not JSON, or the file became shorter.
        """
        begin = min(start, len(self._ends) - 1)
        with self.path.open("rb") as file:
            offset = file.seek(self._ends[begin])
            if os.fstat(file.fileno()).st_size < offset:
                raise StorageError(f"{self.path}: it became shorter while it was in use. {self._remedy}")
            for number, line in enumerate(file, begin):
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                if number + 1 == len(self._ends):
                    self._ends.append(offset)
                if number < start:
                    continue
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise StorageError(f"{self.path} line {number + 1}: not JSON ({error}). {self._remedy}") from error
                yield entry

    def append(self, file: int, entries: Sequence[Any]) -> None:
        """Append ``entries``, all or none, to the file that :meth:`locked` gave.

        Raises:
            OSError: no space left, say; the file is as it was before.
        """
        data = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries).encode()
        end = _cut_torn_line(file, self.path)
        try:
            written = 0
            while written < len(data):
                written += os.write(file, data[written:])
            if self._durable:
                os.fsync(file)
        except OSError:
            os.ftruncate(file, end)
            raise

    @contextlib.contextmanager
    def locked(self, meanwhile: Callable[[], object] | None = None) -> Iterator[int]:
        """Keep all other writers out; gives the file for :meth:`append`. ``meanwhile`` as for :func:`file_lock`.

        Raises:
            SweepFolderError: the file cannot be created or written, or the disk is full.
        """
        with folder_errors(self.path):
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _take(file, meanwhile)
                yield file
            finally:
                os.close(file)


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True, meanwhile: Callable[[], object] | None = None) -> Iterator[bool]:
    """The kernel's lock on ``path``, given back at the end, or by the end of the process.

    True once it is held; with ``wait=False`` False at once where somebody else holds it. ``meanwhile`` is called again
    and again while others hold it, for :data:`POLL_SECONDS`; then the kernel's queue gives everybody a turn.

    Raises:
        SweepFolderError: the file cannot be created.
    """
    with folder_errors(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if wait:
            _take(file, meanwhile)
        yield wait or _taken(file)
    finally:
        os.close(file)


def _take(file: int, meanwhile: Callable[[], object] | None) -> None:
    """Wait for the lock on an open file."""
    until = time.monotonic() + POLL_SECONDS
    while meanwhile is not None and time.monotonic() < until:
        if _taken(file):
            return
        meanwhile()
        time.sleep(TURN_SECONDS * (0.5 + random.random()))
    fcntl.flock(file, fcntl.LOCK_EX)


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _cut_torn_line(file: int, path: Path) -> int:
    """Cut a last line without its end; return the file's size then. Call it under the lock."""
    size = os.fstat(file).st_size
    if size == 0 or os.pread(file, 1, size - 1) == b"\n":
        return size
    end, block = size, 1 << 16
    while end > 0:
        start = max(0, end - block)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    log.warning("%s: the last line was torn (%d bytes); it is cut back.", path, size - end)
    os.ftruncate(file, end)
    os.fsync(file)
    return end
