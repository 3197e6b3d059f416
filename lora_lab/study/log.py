"""The study's log: what happened to its trials and runs, in one order that all workers agree on.

A port with two implementations, :class:`~lora_lab.study.file_log.FileLog` (a file in the sweep's folder) and
:class:`~lora_lab.study.sql_log.SqlLog` (tables in SQLite or PostgreSQL). One suite runs over both
(``tests/study/test_study_log.py``). Whoever has read the same events knows the same (:mod:`lora_lab.study.state`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

Event = dict[str, Any]
"""A JSON object; its number is its place in the log, from 0."""

Append = Callable[[Sequence[Event]], None]


class Log(Protocol):
    """Events that are only ever appended, and a counter for each worker.

    Every method raises :class:`Unreachable` where trying again may help, other ``LoraLabError`` where it will not.
    """

    def read(self, start: int) -> list[Event]:
        """The durable events from number ``start`` on, in order. Waits for nobody."""

    def exclusive(self, meanwhile: Callable[[], object] | None = None) -> contextlib.AbstractContextManager[Append]:
        """Keep all other writers out, on all machines. What the given function is passed (call it once, at the end)
        becomes durable as a whole, at the latest on leaving; where an exception leaves instead, perhaps not at all.

        ``meanwhile`` is called while others write: who reads then what they wrote has little left to read at its turn.
        """

    def beat(self, worker: str) -> None:
        """Raise the worker's counter by one. Touches nothing that :meth:`exclusive` guards."""

    def beats(self, workers: Collection[str]) -> dict[str, int]:
        """The counters of those of ``workers`` that have one."""

    def forget(self, worker: str) -> None:
        """Remove a worker's counter."""

    def mirroring(self) -> contextlib.AbstractContextManager[bool]:
        """True for one holder at a time: who may copy events to Optuna's storage. Waits for nobody."""

    def close(self) -> None:
        """Give connections back."""


class Unreachable(Exception):
    """The log at ``url`` cannot be reached now; what was being appended may be durable or not."""

    def __init__(self, url: str, cause: Exception) -> None:
        super().__init__(words_of(cause, url))
        self.url, self.cause = url, cause


def words_of(error: Exception, url: str | None) -> str:
    """What the driver of the database at ``url`` said, in one line: without its password, the statement and values."""
    cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
    text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    if url is None:
        return text
    from sqlalchemy.engine import make_url

    password = make_url(url).password
    return text.replace(str(password), "***") if password else text
