"""The default Optuna storage: Optuna's journal format in a file that survives what happens to files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from lora_lab.study.lines import Lines

REMEDY = "Move the file away and start the sweep again: it is made anew from the sweep's own log."


class Journal(BaseJournalBackend):
    """One Optuna operation a line, in the format of Optuna's ``JournalFileBackend``, which reads it too.

    Not fsynced: it is a copy of the study's log for Optuna's tools (see :mod:`lora_lab.study.mirror`), and what a
    power cut takes is copied again.
    """

    def __init__(self, path: Path) -> None:
        """Open or create ``path``; cut a torn last line back.

        Raises:
            SweepFolderError: the file cannot be created or written.
        """
        self._lines = Lines(path, durable=False, remedy=REMEDY)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from number ``log_number_from`` on.

        Raises:
            StorageError: a line in the middle is not JSON.
        """
        return self._lines.read(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, all or none.

        Raises:
            SweepFolderError: no space left; the journal is as it was before.
        """
        with self._lines.locked() as file:
            self._lines.append(file, logs)
