"""The MLflow store: which one, whether it answers, how to look at it, and what of its URI may be shown."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from lora_lab.errors import StorageError
from lora_lab.spec import TrackingSpec

ANSWER_SECONDS = 3.0
"""How long a tracking server may take to answer when a sweep begins."""
SQLITE = "sqlite:///"

SHORTEST_SECRET = 6
"""Characters below which a value is not looked for in texts: it would be found in innocent words."""

LONGEST_LINE = 300
"""Characters of an error that are shown."""

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:token|password|passwd|secret|credentials?|access_key|api_key|apikey|auth|pat|key)(?:$|_)", re.IGNORECASE
)
_USER = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)(?P<user>[^\s/@:]*):(?P<password>[^\s/]*)@")
_TOKEN = re.compile(r"(?P<scheme>https?://)[^\s/@:]+@")
_QUERY = re.compile(r"(?P<name>[?&;][\w.-]*(?:password|passwd|token|secret|key)[\w.-]*=)[^&;\s'\"]+", re.IGNORECASE)


def resolve_uri(spec: TrackingSpec) -> str:
    """The tracking URI: the spec's, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working folder.

    A relative SQLite path becomes absolute, so that the URI means the same in another folder.
    """
    uri = spec.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    return uri


def redact(text: str) -> str:
    """``text`` without the secrets in its URIs, and without the values of secret environment variables.

    In URIs: ``user:password@``, ``https://token@``, ``?password=``, ``&token=``. In the environment: variables whose
    names say so (``HF_TOKEN``, ``MLFLOW_TRACKING_PASSWORD``, ``AWS_SECRET_ACCESS_KEY``, …).
    """
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = _TOKEN.sub(r"\g<scheme>***@", _USER.sub(r"\g<scheme>\g<user>:***@", text))
    return _QUERY.sub(r"\g<name>***", text)


def first_line(error: Exception) -> str:
    """What an error says, in one redacted line; its name where it says nothing."""
    said = getattr(error, "orig", None) or error  # SQLAlchemy adds the statement and a link
    return redact(next(iter(str(said).strip().splitlines()), type(error).__name__))[:LONGEST_LINE]


def _secrets() -> list[str]:
    """The values of secret environment variables, longest first; a path is the place of a secret, not one."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST_SECRET and _SECRET_NAME.search(name) and not value.startswith("/")
    }
    return sorted(found, key=len, reverse=True)


def ui_command(uri: str) -> list[str]:
    """The command that opens the UI of the store at ``uri``, run from the working folder.

    The real URI stands in it: show it through :func:`redact`. A tracking server has its own UI; there the
    command opens a browser.
    """
    if uri.startswith(("http://", "https://")):
        return ["python", "-m", "webbrowser", uri]
    if uri == f"{SQLITE}{Path('mlflow.db').absolute()}" and not _old_file_store():
        return ["mlflow", "ui"]
    return ["mlflow", "ui", "--backend-store-uri", uri]


def check(spec: TrackingSpec) -> None:
    """See that the store can be reached, before anything is trained. Creates nothing that stays.

    Raises:
        StorageError: a server that does not answer ``/health`` within :data:`ANSWER_SECONDS`, a database that
            refuses the connection, a folder that cannot be written.
    """
    if spec.name == "none":
        return
    uri = resolve_uri(spec)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        _check_server(uri)
    elif uri.startswith(SQLITE):
        _check_folder(Path(uri.removeprefix(SQLITE)).parent, uri)
    elif scheme in ("", "file"):
        _check_folder(Path(urlsplit(uri).path or uri), uri)
    else:
        _check_database(uri)


def _old_file_store() -> bool:
    """True where a bare ``mlflow ui`` opens the experiments that an older MLflow left in ``./mlruns``."""
    return any(Path("mlruns").glob("[0-9]*/meta.yaml"))


def _refuse(uri: str, cause: str, remedy: str) -> StorageError:
    return StorageError(
        f"tracking.uri={redact(uri)}: {redact(cause)}. {remedy} tracking=none trains without MLflow; "
        "the metrics are kept in the sweep's folder all the same."
    )


def _check_server(uri: str) -> None:
    parts = urlsplit(uri)
    try:
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    except ValueError as error:
        raise _refuse(uri, f"not a URL ({error})", "Write it like http://host:5000.") from error
    health = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(health, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (401, 403):  # it is there; MLflow logs in by itself
                return
            cause = f"/health answers {error.code} {error.reason}"
        raise _refuse(uri, cause, "Is an MLflow server behind that address?") from error
    except (OSError, ValueError) as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        said = "timed out" if isinstance(why, TimeoutError) else str(why)
        raise _refuse(uri, f"the tracking server does not answer ({said})", "Start it, or mend the address.") from error


def _check_folder(folder: Path, uri: str) -> None:
    where = folder
    try:
        while not where.exists():
            where = where.parent
        with tempfile.TemporaryFile(dir=where):
            return
    except OSError as error:
        cause = f"{where} cannot be written ({error.strerror})"
        raise _refuse(uri, cause, "Choose another file with tracking.uri=sqlite:////PATH/mlflow.db.") from error


def _check_database(uri: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        url = make_url(uri)
        port = url.port or {"postgresql": 5432, "mysql": 3306}.get(url.get_backend_name())
        if url.host and port:  # the port first: drivers differ in how they name a time limit
            socket.create_connection((url.host, port), timeout=ANSWER_SECONDS).close()
        engine = create_engine(url)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except ArgumentError as error:
        raise _refuse(uri, "not a tracking URI", "Use sqlite:///mlflow.db or http://host:5000.") from error
    except ImportError as error:
        raise _refuse(uri, f"its driver is not installed ({error})", "Install it.") from error
    except (SQLAlchemyError, OSError) as error:
        raise _refuse(
            uri, f"the database does not answer ({first_line(error)})", "Start it, or mend the URI."
        ) from error
