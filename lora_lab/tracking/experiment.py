"""One experiment of an MLflow store, through calls that may be made twice."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from lora_lab.errors import StorageError
from lora_lab.tracking.store import SQLITE, redact

METRICS_A_CALL = 1000
PARAMS_A_CALL = 100
"""MLflow's own limits of one ``log_batch``."""
QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Set where the user has not: quiet, and a dead server noticed in seconds instead of four minutes."""
TEXTS = (".yaml", ".json", ".html", ".md", ".csv", ".svg", ".txt")
"""Files that are sent as text, without secrets."""


def connect(uri: str) -> Any:
    """An ``MlflowClient`` for ``uri``. Importing MLflow and creating an SQLite store takes seconds."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    if uri.startswith(SQLITE):
        _make_whole(Path(uri.removeprefix(SQLITE)))
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_whole(path: Path) -> None:
    """Make the SQLite store at ``path`` beside its place, and move it there.

    MLflow makes one in some forty migrations; a process that is killed among them would leave a file that MLflow
    refuses ever after. What such a process leaves is removed by the next one of its machine.
    """
    mine = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(mine)}*"):
        process = left.name.removeprefix(mine).partition("-")[0]  # SQLite's own files are called PID-journal
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            left.unlink(missing_ok=True)
    if path.exists() and path.stat().st_size > 0:
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{mine}{os.getpid()}")
    try:
        MlflowClient(tracking_uri=f"{SQLITE}{beside}").search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.hardlink_to(beside)
    finally:
        beside.unlink(missing_ok=True)


class Experiment:
    """The experiment ``name`` of the store at ``uri``; made where it is not there.

    Raises:
        StorageError: it is deleted.
        Exception: whatever MLflow raises when its store cannot be reached. So do all methods.
    """

    def __init__(self, uri: str, name: str, connect: Callable[[str], Any] = connect) -> None:
        self.client = connect(uri)
        self.name = name
        self.served = uri.startswith(("http://", "https://"))
        self.id = self._id(uri)

    def _id(self, uri: str) -> str:
        found = self.client.get_experiment_by_name(self.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise StorageError(
                f"the MLflow experiment {self.name!r} is deleted: restore it with 'mlflow experiments "
                f"restore --experiment-id {found.experiment_id}', or use another with tracking.experiment=NAME."
            )
        if found is not None:
            return str(found.experiment_id)
        return str(self.client.create_experiment(self.name, artifact_location=_artifact_location(uri, self.name)))

    def find(self, condition: str) -> str | None:
        """The newest run for which ``condition`` holds."""
        found = self.client.search_runs([self.id], filter_string=condition, max_results=1)
        return str(found[0].info.run_id) if found else None

    def create(self, name: str, tags: Mapping[str, str], start_time: int | None = None) -> str:
        """A new run."""
        run = self.client.create_run(self.id, start_time=start_time, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def set_params(self, run: str, params: Mapping[str, str]) -> None:
        """Set the parameters that the run lacks; MLflow takes none of them back."""
        from mlflow.entities import Param

        there = self.client.get_run(run).data.params
        missing = [Param(name, value) for name, value in params.items() if name not in there]
        for some in chunks(missing, PARAMS_A_CALL):
            self.client.log_batch(run, params=some)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags, over what they were."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])

    def send_file(self, run: str, path: Path, place: str = "") -> None:
        """Put a file among a run's artifacts, in the folder ``place``; texts without secrets."""
        if path.suffix in TEXTS:
            name = f"{place}/{path.name}" if place else path.name
            self.client.log_text(run, redact(path.read_text(encoding="utf-8")), name)
        else:
            self.client.log_artifact(run, str(path), place or None)


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """``items`` in pieces of ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _artifact_location(uri: str, name: str) -> str | None:
    """Beside an SQLite store (MLflow would take the working folder, whatever that is); else the server's choice."""
    if not uri.startswith(SQLITE):
        return None
    folder = Path(uri.removeprefix(SQLITE)).parent
    return None if folder == Path.cwd() else (folder / "mlruns" / name).as_uri()
