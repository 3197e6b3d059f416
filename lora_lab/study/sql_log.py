"""The study's log as tables beside Optuna's, in SQLite or PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import threading
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.engine import Connection, make_url

from lora_lab.study.lines import file_lock
from lora_lab.study.log import Append, Event, Unreachable
from lora_lab.study.storage import created_once, gone

META = sa.MetaData()
STUDIES = sa.Table("lora_lab_studies", META, sa.Column("study", sa.String(512), primary_key=True))
EVENTS = sa.Table(
    "lora_lab_events",
    META,
    sa.Column("study", sa.String(512), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("event", sa.Text, nullable=False),
)
BEATS = sa.Table(
    "lora_lab_beats",
    META,
    sa.Column("study", sa.String(512), primary_key=True),
    sa.Column("worker", sa.String(256), primary_key=True),
    sa.Column("beats", sa.BigInteger, nullable=False),
)


PAUSE_MS = 20_000
"""Milliseconds that PostgreSQL waits for a worker that says nothing in the middle of a transaction."""


class SqlLog:
    """Rows of ``lora_lab_events``; a study's writers queue for its row in ``lora_lab_studies`` (``FOR UPDATE``).

    SQLite has no such queue, only a lock that writers poll for, unfairly; so there they queue for the kernel's lock on
    a file beside the database. That a number is taken once is the primary key's doing, whoever else may write.
    """

    def __init__(self, engine: sa.Engine, url: str, study: str) -> None:
        """``engine`` as :func:`lora_lab.study.storage.engine_of` makes it.

        Raises:
            Unreachable: the database is away.
        """
        self._engine = engine
        self._study = study
        database = make_url(url).database
        sqlite = engine.dialect.name == "sqlite"
        self._queue = Path(f"{database}.lock") if sqlite and database else None
        self._mirror = Path(f"{database}.mirror.lock") if sqlite and database else None
        self._url = url
        self._turn: tuple[int, Connection] | None = None  # the thread that writes now, and what with
        with self._reached(), self._queued():
            created_once(self._create)

    def read(self, start: int) -> list[Event]:
        """See :class:`~lora_lab.study.log.Log`."""
        if self._turn is not None and self._turn[0] == threading.get_ident():
            return self._events(self._turn[1], start)
        with self._reached(), self._engine.connect() as connection:
            return self._events(connection, start)

    @contextlib.contextmanager
    def exclusive(self, meanwhile: Callable[[], object] | None = None) -> Iterator[Append]:
        """See :class:`~lora_lab.study.log.Log`. PostgreSQL has ``meanwhile`` called once, before its own queue."""
        if self._queue is None and meanwhile is not None:
            meanwhile()
        with self._reached(), self._queued(meanwhile), self._engine.connect() as connection:
            begin = "BEGIN IMMEDIATE" if self._engine.dialect.name == "sqlite" else "BEGIN"
            connection.exec_driver_sql(begin)
            try:
                if self._engine.dialect.name == "postgresql":
                    # A worker that is stopped in here must not hold up all others.
                    connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {PAUSE_MS}")
                if self._engine.dialect.name != "sqlite":
                    connection.execute(sa.select(STUDIES).where(STUDIES.c.study == self._study).with_for_update())

                def append(events: Sequence[Event]) -> None:
                    end = connection.execute(
                        sa.select(sa.func.max(EVENTS.c.number)).where(EVENTS.c.study == self._study)
                    ).scalar()
                    first = 0 if end is None else int(end) + 1
                    connection.execute(
                        EVENTS.insert(),
                        [
                            {"study": self._study, "number": first + i, "event": json.dumps(event)}
                            for i, event in enumerate(events)
                        ],
                    )

                self._turn = (threading.get_ident(), connection)
                yield append
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                    connection.exec_driver_sql("ROLLBACK")
                raise
            finally:
                self._turn = None

    def beat(self, worker: str) -> None:
        """See :class:`~lora_lab.study.log.Log`."""
        mine = (BEATS.c.study == self._study) & (BEATS.c.worker == worker)
        with self._reached(), self._queued(), self._engine.connect() as connection:
            changed = connection.execute(BEATS.update().where(mine).values(beats=BEATS.c.beats + 1))
            if changed.rowcount == 0:
                connection.execute(BEATS.insert().values(study=self._study, worker=worker, beats=1))

    def beats(self, workers: Collection[str]) -> dict[str, int]:
        """See :class:`~lora_lab.study.log.Log`."""
        wanted = (BEATS.c.study == self._study) & BEATS.c.worker.in_(workers)
        with self._reached(), self._engine.connect() as connection:
            rows = connection.execute(sa.select(BEATS.c.worker, BEATS.c.beats).where(wanted))
            return {str(worker): int(beats) for worker, beats in rows}

    def forget(self, worker: str) -> None:
        """See :class:`~lora_lab.study.log.Log`."""
        mine = (BEATS.c.study == self._study) & (BEATS.c.worker == worker)
        with self._reached(), self._queued(), self._engine.connect() as connection:
            connection.execute(BEATS.delete().where(mine))

    @contextlib.contextmanager
    def mirroring(self) -> Iterator[bool]:
        """See :class:`~lora_lab.study.log.Log`."""
        if self._mirror is not None:
            with file_lock(self._mirror, wait=False) as mine:
                yield mine
        elif self._engine.dialect.name == "postgresql":
            number = zlib.crc32(f"lora_lab mirror {self._study}".encode())
            with self._reached(), self._engine.connect() as connection:
                mine = bool(connection.execute(sa.select(sa.func.pg_try_advisory_lock(number))).scalar())
                try:
                    yield mine
                finally:
                    if mine:
                        connection.execute(sa.select(sa.func.pg_advisory_unlock(number)))
        else:
            yield True

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _create(self) -> None:
        with self._engine.connect() as connection:
            META.create_all(connection)
            if connection.execute(sa.select(STUDIES).where(STUDIES.c.study == self._study)).first() is None:
                connection.execute(STUDIES.insert().values(study=self._study))

    def _events(self, connection: Connection, start: int) -> list[Event]:
        rows = connection.execute(
            sa.select(EVENTS.c.event)
            .where((EVENTS.c.study == self._study) & (EVENTS.c.number >= start))
            .order_by(EVENTS.c.number)
        )
        return [json.loads(text) for (text,) in rows]

    @contextlib.contextmanager
    def _queued(self, meanwhile: Callable[[], object] | None = None) -> Iterator[None]:
        if self._queue is None:
            yield
        else:
            with file_lock(self._queue, meanwhile=meanwhile):
                yield

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except sqlalchemy.exc.SQLAlchemyError as error:
            if _may_pass(error):
                raise Unreachable(self._url, error) from error
            raise gone(self._url, error) from error


def _may_pass(error: sqlalchemy.exc.SQLAlchemyError) -> bool:
    """A server that is away may come back; a SQLite file that is gone or spoilt will not."""
    if not isinstance(error, sqlalchemy.exc.DBAPIError):
        return isinstance(error, sqlalchemy.exc.PendingRollbackError | sqlalchemy.exc.TimeoutError)
    if type(error.orig).__module__.startswith("sqlite3"):
        return "locked" in str(error.orig)
    return error.connection_invalidated or isinstance(
        error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError | sqlalchemy.exc.InternalError
    )
