"""Where a study is kept: files in the sweep's folder, or a database by URL; Optuna's storage and our log beside it."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from lora_lab.errors import StorageError
from lora_lab.study.journal import Journal
from lora_lab.study.log import words_of

JOURNAL = "study.journal"
Made = TypeVar("Made")

log = logging.getLogger(__name__)

CREATE_TRIES = 5
CONNECT_SECONDS = 5
"""How long a database may take to answer before it counts as unreachable."""
FULL_SECONDS = 60
"""How long to wait for a place at a server that has as many clients as it takes."""
FULL = ("too many clients already", "remaining connection slots are reserved", "too many connections for")
SQLITE_LOCK_SECONDS = 30
"""How long to wait for another process that writes to the same SQLite file."""


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Optuna's storage at ``url``, or ``folder/study.journal`` for ``None``.

    Raises:
        StorageError: it cannot be reached within :data:`CONNECT_SECONDS`, the URL is malformed, or its
            driver is not installed. Passwords are not shown.
        SweepFolderError: the journal cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        return JournalStorage(Journal(folder / JOURNAL))
    with _understood(url), reachable(url):
        # Only one worker of a study copies trials; the others need not keep connections for it.
        alone = {"poolclass": NullPool} if make_url(url).get_backend_name() == "postgresql" else {}
        return created_once(lambda: _in_turn(lambda: RDBStorage(url, engine_kwargs=_engine_args(url) | alone)))


def created_once(create: Callable[[], Made]) -> Made:
    """``create()``, tried again where another worker creates the same tables at the same moment."""
    for _ in range(CREATE_TRIES - 1):
        try:
            return create()
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError, StorageInternalError) as error:
            log.info("another worker creates the study's tables: %s", error)
            time.sleep(0.2)
        except sqlalchemy.exc.OperationalError as error:
            if "already exists" not in str(error):
                raise
            time.sleep(0.2)
    return create()


def engine_of(url: str) -> sa.Engine:
    """An engine for the study's own tables, on which every statement is its own transaction unless one is begun.

    Raises:
        StorageError: as :func:`open_storage`.
    """
    with _understood(url), reachable(url):
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", pool_size=1, **_engine_args(url))
    sa.event.listen(
        engine,
        "do_connect",
        lambda dialect, record, words, named: _in_turn(lambda: dialect.connect(*words, **named)),
    )
    return engine


def _engine_args(url: str) -> dict[str, Any]:
    kind = make_url(url).get_backend_name()
    if kind == "sqlite":
        return {"connect_args": {"timeout": SQLITE_LOCK_SECONDS}, "pool_pre_ping": True}
    if kind != "postgresql":
        return {"pool_pre_ping": True}
    args = {"connect_timeout": CONNECT_SECONDS, "keepalives_idle": 10, "tcp_user_timeout": 15_000}
    return {"connect_args": args, "pool_pre_ping": True}


def _in_turn(connect: Callable[[], Made]) -> Made:
    """``connect()``, again and again while the server has as many clients as it takes."""
    until = time.monotonic() + FULL_SECONDS
    while True:
        try:
            return connect()
        except Exception as error:
            full = any(said in f"{error} {error.__cause__}" for said in FULL)
            if not full or time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.1, 0.5))


@contextlib.contextmanager
def _understood(url: str) -> Iterator[None]:
    try:
        kind = make_url(url).get_backend_name()
        if kind == "postgres":
            raise ValueError(kind)
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        raise StorageError(
            "sweep.storage: not a database URL. E.g. sqlite:///study.db, postgresql+psycopg://user@host/database (with "
            "that beginning), or null for a journal in the sweep's folder."
        ) from error
    try:
        yield
    except ImportError as error:
        raise StorageError(
            f"sweep.storage={shown(url)}: its driver is not installed ({error}). "
            "For PostgreSQL: pip install 'psycopg[binary]' and write postgresql+psycopg://…."
        ) from error


@contextlib.contextmanager
def reachable(url: str | None) -> Iterator[None]:
    """Turn the errors of a database that is gone into a :class:`StorageError`, without its password."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise gone(url, error) from error


def gone(url: str | None, error: Exception) -> StorageError:
    """The :class:`StorageError` of a database that answers with ``error``, without its password."""
    return StorageError(
        f"sweep.storage={shown(url)}: cannot be reached ({words_of(error, url)}). Start the database or mend the "
        "URL, and give the same command again: what was settled is safe. sweep.storage=null keeps the study in the "
        "sweep's folder."
    )


def shown(url: str | None) -> str:
    """A storage URL as it may be printed: without its password."""
    return "null" if url is None else make_url(url).render_as_string(hide_password=True)


def close_storage(storage: BaseStorage) -> None:
    """Give database connections back; a journal has none."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
