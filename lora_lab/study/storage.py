"""Open the Optuna storage of a sweep: its own journal, or a database by URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy.engine import make_url

from lora_lab.errors import StorageError
from lora_lab.study.journal import Journal

CONNECT_SECONDS = 5
"""How long a database may take to answer before it counts as unreachable."""
SQLITE_LOCK_SECONDS = 30
"""How long to wait for another process that writes to the same SQLite file."""


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage at ``url``, or ``folder/study.journal`` for ``None``.

    Raises:
        StorageError: it cannot be reached within :data:`CONNECT_SECONDS`, the URL is malformed, or its
            driver is not installed. Passwords are not shown.
        SweepFolderError: the journal cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        return JournalStorage(Journal(folder / "study.journal"))
    try:
        backend = make_url(url).get_backend_name()
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        raise StorageError(
            "sweep.storage: not a database URL. E.g. sqlite:///study.db, postgresql+psycopg://user@host/database, "
            "or null for a journal in the sweep's folder."
        ) from error
    seconds = {"sqlite": {"timeout": SQLITE_LOCK_SECONDS}, "postgresql": {"connect_timeout": CONNECT_SECONDS}}
    try:
        with reachable(url):
            return RDBStorage(url, engine_kwargs={"connect_args": seconds.get(backend, {}), "pool_pre_ping": True})
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
        cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
        text = str(cause).strip().splitlines()[0]
        if url is not None and (password := make_url(url).password):
            text = text.replace(str(password), "***")
        raise StorageError(
            f"sweep.storage={shown(url)}: cannot be reached ({text}). Start the database or mend the URL, and give the "
            "same command again: what was settled is safe. sweep.storage=null keeps the study in the sweep's folder."
        ) from error


def shown(url: str | None) -> str:
    """A storage URL as it may be printed: without its password."""
    return "null" if url is None else make_url(url).render_as_string(hide_password=True)


def close_storage(storage: BaseStorage) -> None:
    """Give database connections back; a journal has none."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
