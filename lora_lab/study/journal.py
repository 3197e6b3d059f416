"""The default storage: Optuna's journal, made to survive a kill, a full disk and a torn last line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from lora_lab.errors import StorageError
from lora_lab.files import folder_errors

log = logging.getLogger(__name__)


class Journal(BaseJournalBackend):
    """One JSON object a line, appended under a lock and fsynced.

    Unlike Optuna's ``JournalFileBackend``: a torn last line (the writer was killed, the disk was full) is cut
    back before the next write instead of spoiling the file for ever, and the lock is the kernel's (``flock`` on
    the journal itself), which a killed process gives back at once, instead of a file that is waited for 30 s.
    The format is the same, so ``optuna-dashboard`` and Optuna's own backend read it.
    """

    def __init__(self, path: Path) -> None:
        """Open or create ``path``; cut a torn last line back.

        Raises:
            SweepFolderError: the file cannot be created or written.
        """
        self.path = path
        self._offsets = {0: 0}
        with self._locked() as file:
            _cut_torn_line(file, path)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from number ``log_number_from`` on.

        A last line without its end is being written by somebody else: it is left for the next read.

        Raises:
            StorageError: a line in the middle is not JSON.
        """
        start = max(number for number in self._offsets if number <= log_number_from)
        with self.path.open("rb") as file:
            offset = self._offsets[start]
            file.seek(offset)
            for number, line in enumerate(file, start):
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                self._offsets[number + 1] = offset
                if number < log_number_from:
                    continue
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise StorageError(
                        f"{self.path} line {number + 1}: not JSON ({error}). Move the file away and start the sweep "
                        "again: it is rebuilt from runs/*/result.json, and only unfinished runs are trained."
                    ) from error
                yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, all or none, durably.

        Raises:
            SweepFolderError: no space left; the journal is as it was before.
        """
        data = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        with self._locked() as file:
            end = _cut_torn_line(file, self.path)
            try:
                written = 0
                while written < len(data):
                    written += os.write(file, data[written:])
                os.fsync(file)
            except OSError:
                os.ftruncate(file, end)
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        with folder_errors(self.path):
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
            finally:
                os.close(file)


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
