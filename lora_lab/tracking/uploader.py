"""Bring a sweep's folder to MLflow, from whatever was brought there before.

No thread and no patience of its own (see :mod:`lora_lab.tracking.tracker`): :meth:`Uploader.send` makes one
pass and raises what MLflow raises. Everything it does may be done twice. A run is found again by its tags
if its id was lost; steps that the server has are not sent again; parameters are set where they are missing;
final metrics carry the result's own step and time; tags and artifacts are overwritten by the same.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_lab.errors import CheckpointError, LoraLabError, StorageError
from lora_lab.files import read_json
from lora_lab.spec import RunResult, RunSpec, Sweep, from_tree, thaw, to_tree
from lora_lab.tracking.record import (
    SERIES,
    STATUS,
    final_metrics,
    result_tags,
    run_params,
    run_tags,
    step_metrics,
    sweep_params,
    sweep_tags,
)
from lora_lab.tracking.spool import read_spool, spool_path
from lora_lab.tracking.state import State
from lora_lab.tracking.store import SQLITE, redact

POINTS = 1000
"""Steps of a run that are sent, at most: of a longer run every second, third, … (the spool keeps them all)."""
METRICS_A_CALL = 1000
PARAMS_A_CALL = 100
"""MLflow's own limits of one ``log_batch``."""
OWN_FAULT = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "INVALID_STATE"}
)
"""MLflow's error codes for one run being refused, while the store itself is well."""
QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Set where the user has not: quiet, and a dead server noticed in seconds instead of four minutes."""

log = logging.getLogger(__name__)


class OutOfTime(Exception):
    """The tracker is closing and its time is up; the rest stays for the next session."""


def connect(uri: str) -> Any:
    """An ``MlflowClient`` for ``uri``. Importing MLflow and creating an SQLite store takes seconds."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    return MlflowClient(tracking_uri=uri)


@dataclass
class _Child:
    """What this session knows of one run: how far its spool was read, and the last step sent of each series."""

    name: str
    mlflow: str | None = None
    offset: int = 0
    file: int | None = None
    spec: RunSpec | None = None
    total_steps: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    active: bool = False


class Uploader:
    """Follows one sweep's folder into one MLflow experiment."""

    def __init__(
        self,
        folder: Path,
        sweep: Sweep,
        uri: str,
        experiment: str,
        *,
        connect: Callable[[str], Any] = connect,
        in_time: Callable[[], bool] = lambda: True,
    ) -> None:
        """Nothing is contacted yet. ``in_time`` is asked between calls; once it says no, they end."""
        self._folder = folder
        self._sweep = sweep
        self._uri = uri
        self._experiment_name = experiment
        self._connect = connect
        self._in_time = in_time
        self._state = State(folder, uri, experiment)
        self._client: Any = None
        self._experiment = ""
        self._parent_ready = False
        self._documents: dict[str, float] = {}
        self._children: dict[str, _Child] = {}
        self.refused: dict[str, str] = {}

    def send(self) -> None:
        """Send everything that is new.

        Raises:
            OutOfTime: ``in_time`` said no; what was sent until then is remembered.
            Exception: whatever MLflow raises when its store cannot be reached.
        """
        store = self._state.store
        if self._client is None and (store.parent is None or store.closed) and not self.unsent():
            return
        try:
            self._begin()
            for name in self._open_runs():
                self._tick()
                try:
                    self._send_run(self._children.setdefault(name, _Child(name)))
                except Exception as error:
                    if not _own_fault(error):
                        raise
                    self.refused[name] = redact(str(error))
                    log.warning("MLflow refuses run %s: %s", name, self.refused[name])
        finally:
            self._state.save()

    def finish(self) -> None:
        """Mark the parent and the runs that were put aside as not running any more. Call it after :meth:`send`."""
        store = self._state.store
        if self._client is None or store.parent is None or store.closed:
            return
        aside = [child.mlflow for child in self._children.values() if child.active]
        for run in aside:
            self._client.set_terminated(run, status="KILLED")
        self._client.set_terminated(store.parent, status="KILLED" if aside else "FINISHED")
        store.closed = True
        self._state.save()

    def unsent(self) -> dict[str, int]:
        """The runs that are not wholly sent, with the number of metric lines that wait in their spools."""
        out: dict[str, int] = {}
        for name in self._open_runs():
            child = self._children.get(name) or _Child(name)
            waiting = sum(record["kind"] in ("step", "evaluation") for record in self._new_lines(child)[0])
            if waiting or (self._folder / "runs" / name / "result.json").exists():
                out[name] = waiting
        return out

    # The sweep

    def _begin(self) -> None:
        """Connect; find or make the experiment and the parent run."""
        if self._client is None:
            self._client = self._connect(self._uri)
        from mlflow.entities import RunTag

        if not self._experiment:
            self._experiment = self._find_experiment()
        store = self._state.store
        if store.parent is None:
            self._state.save()  # the sweep's own id first: it finds the parent if this process dies after the next call
            tags = {"lora_lab.sweep": store.sweep, **sweep_tags(self._sweep)}
            store.parent = self._find(f"tags.`lora_lab.sweep` = '{store.sweep}' and tags.`lora_lab.kind` = 'sweep'")
            if store.parent is None:
                store.parent = self._create(self._sweep.name, tags)
            self._state.save()
        if not self._parent_ready:
            now = [RunTag(name, value) for name, value in sweep_tags(self._sweep).items()]
            self._client.log_batch(store.parent, tags=now)
            self._client.update_run(store.parent, status="RUNNING", name=self._sweep.name)
            store.closed = False
            self._set_params(store.parent, sweep_params(self._sweep))
            self._parent_ready = True
        for name in ("config.yaml", "sweep.json"):
            self._send_document(store.parent, name)

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment_name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise StorageError(
                f"the MLflow experiment {self._experiment_name!r} is deleted: restore it with 'mlflow experiments "
                f"restore --experiment-id {found.experiment_id}', or use another with tracking.experiment=NAME."
            )
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._experiment_name, artifact_location=self._artifact_location()))

    def _artifact_location(self) -> str | None:
        """Beside an SQLite store (MLflow would take the working folder, whatever that is); else the server's choice."""
        if not self._uri.startswith(SQLITE):
            return None
        folder = Path(self._uri.removeprefix(SQLITE)).parent
        return None if folder == Path.cwd() else (folder / "mlruns" / self._experiment_name).as_uri()

    def _send_document(self, parent: str, name: str) -> None:
        """Put a file of the sweep's folder on the parent run, without secrets, whenever it has changed."""
        path = self._folder / name
        try:
            changed = path.stat().st_mtime
        except FileNotFoundError:
            return
        if self._documents.get(name) != changed:
            self._client.log_text(parent, redact(path.read_text(encoding="utf-8")), name)
            self._documents[name] = changed

    # A run

    def _open_runs(self) -> Iterator[str]:
        """The runs with something in their folder that are not known to be wholly sent or refused."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._folder / "runs") if entry.is_dir())
        except FileNotFoundError:
            return
        for name in names:
            if name not in self._state.done and name not in self.refused:
                yield name

    def _send_run(self, child: _Child) -> None:
        result = self._result(child.name)  # first: what was recorded before the run was settled is in the spool by now
        records, offset, file = self._new_lines(child)
        if not records and result is None:
            return
        for record in records:
            if record["kind"] == "started":
                child.spec = from_tree(RunSpec, record["spec"])
                child.total_steps = record["total_steps"]
        if child.spec is None:
            if result is None:
                return
            child.spec = self._sweep.spec_of(thaw(result.point), result.seed)  # shared with an equal run: no spool
        trial = int(child.name[1:].split("-")[0])
        if child.mlflow is None:
            self._enter(child, trial, child.spec, result, records)
        elif not child.active and result is None:
            self._client.update_run(child.mlflow, status="RUNNING")
            child.active = True
        assert child.mlflow is not None
        for metrics in _chunks(self._metrics(child, records), METRICS_A_CALL):
            self._tick()
            self._client.log_batch(child.mlflow, metrics=[metric for _, metric in metrics])
            child.sent.update({name: metric.step for name, metric in metrics})
        child.offset, child.file = offset, file
        if result is not None:
            self._settle(child, child.spec, result)

    def _new_lines(self, child: _Child) -> tuple[list[dict[str, Any]], int, int | None]:
        """Lines not read yet; all of them again where the spool was cut (its steps that were sent are known)."""
        path = spool_path(self._folder, child.name)
        try:
            now = path.stat()
            same = now.st_ino == child.file and now.st_size >= child.offset
            records, offset = read_spool(path, child.offset if same else 0)
        except FileNotFoundError:
            return [], 0, None
        return records, offset, now.st_ino

    def _result(self, name: str) -> RunResult | None:
        try:
            return RunResult.from_tree(read_json(self._folder / "runs" / name / "result.json"))
        except FileNotFoundError:
            return None
        except (LoraLabError, KeyError, TypeError, ValueError) as error:
            # The study says so and stops, too; here it is one run that cannot be shown.
            raise CheckpointError(f"{name}: {error}") from error

    def _enter(
        self, child: _Child, trial: int, spec: RunSpec, result: RunResult | None, records: Sequence[Mapping[str, Any]]
    ) -> None:
        """Find the run in MLflow, with what it has already, or make it."""
        store = self._state.store
        known = store.runs.get(child.name)
        if known is None:
            known = self._find(f"tags.`lora_lab.sweep` = '{store.sweep}' and tags.`lora_lab.run` = '{child.name}'")
        if known is None:
            begun = result.started if result is not None else None
            if begun is None and records:
                begun = records[0].get("time")
            identity = {"mlflow.parentRunId": str(store.parent), "lora_lab.sweep": store.sweep}
            tags = {**run_tags(self._sweep, child.name, trial, spec), **identity}
            known = self._create(child.name, tags, None if begun is None else int(begun * 1000))
        else:
            there = self._client.get_run(known).data.metrics
            for name in SERIES:
                if name in there:
                    child.sent[name] = max(metric.step for metric in self._client.get_metric_history(known, name))
            self._client.update_run(known, status="RUNNING")
        store.runs[child.name] = known
        self._set_params(known, run_params(spec))
        child.mlflow, child.active = known, True

    def _metrics(self, child: _Child, records: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
        """The metrics of some lines, without the steps that were sent or are left out."""
        from mlflow.entities import Metric

        every = max(1, math.ceil(child.total_steps / POINTS))
        last, out = dict(child.sent), []
        for record in records:
            step = record.get("step", 0)
            if record["kind"] == "step" and step % every and step != child.total_steps:
                continue
            for name, value in step_metrics(record).items():
                if step > last.get(name, -1):
                    out.append((name, Metric(name, float(value), int(record["time"] * 1000), step)))
                    last[name] = step
        return out

    def _settle(self, child: _Child, spec: RunSpec, result: RunResult) -> None:
        """Final metrics, tags, artifacts and status."""
        from mlflow.entities import Metric, RunTag

        path = self._folder / "runs" / child.name / "result.json"
        ended = int((result.ended or path.stat().st_mtime) * 1000)
        # A series that has a point at the last step keeps it: it is the same number.
        metrics = [
            Metric(name, value, ended, result.steps)
            for name, value in final_metrics(result).items()
            if result.steps > child.sent.get(name, -1)
        ]
        tags = [RunTag(name, value) for name, value in result_tags(result).items()]
        self._client.log_batch(child.mlflow, metrics=metrics, tags=tags)
        self._client.log_text(child.mlflow, redact(json.dumps(to_tree(spec), indent=1)), "config.json")
        if result.adapter is not None:
            adapter = self._folder / result.adapter
            if adapter.is_relative_to(path.parent) and adapter.exists():
                self._tick()
                self._client.log_artifacts(child.mlflow, str(adapter), "adapter")
            else:
                self._client.set_tag(child.mlflow, "adapter_of", Path(result.adapter).parts[1:2][0])
        self._client.set_terminated(child.mlflow, status=STATUS.get(result.outcome, "FAILED"), end_time=ended)
        self._state.done.add(child.name)
        self._children.pop(child.name)

    # Calls that are safe to make twice

    def _find(self, condition: str) -> str | None:
        found = self._client.search_runs([self._experiment], filter_string=condition, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _create(self, name: str, tags: Mapping[str, str], start_time: int | None = None) -> str:
        run = self._client.create_run(self._experiment, start_time=start_time, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def _set_params(self, run: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        there = self._client.get_run(run).data.params
        missing = [Param(name, value) for name, value in params.items() if name not in there]
        for some in _chunks(missing, PARAMS_A_CALL):
            self._client.log_batch(run, params=some)

    def _tick(self) -> None:
        if not self._in_time():
            raise OutOfTime


def _own_fault(error: Exception) -> bool:
    """True where one run is at fault, and the next ones can be sent."""
    return isinstance(error, LoraLabError) or getattr(error, "error_code", None) in OWN_FAULT


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
