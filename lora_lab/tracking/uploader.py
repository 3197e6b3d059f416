"""Bring a sweep's folder to MLflow, from whatever was brought there before.

No thread and no patience of its own (see :mod:`lora_lab.tracking.tracker`): :meth:`Uploader.send` makes one
pass and raises what MLflow raises. Everything it does may be done twice. A run is found again by its tags
if its id was lost; steps that the server has are not sent again; parameters are set where they are missing;
final metrics carry the result's own step and time; tags and artifacts are overwritten by the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_lab.errors import LoraLabError
from lora_lab.spec import Sweep
from lora_lab.tracking.children import Children, Predict
from lora_lab.tracking.experiment import Experiment, connect
from lora_lab.tracking.logged import register_best
from lora_lab.tracking.record import sweep_params, sweep_tags
from lora_lab.tracking.state import State
from lora_lab.tracking.store import redact

DOCUMENTS = ("config.yaml", "sweep.json")
REPORT = "report"
"""A folder of the sweep whose files go to the parent run as they are: its tables and plots."""
OWN_FAULT = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "INVALID_STATE"}
)
"""MLflow's error codes for one run being refused, while the store itself is well."""

log = logging.getLogger(__name__)


class OutOfTime(Exception):
    """The tracker is closing and its time is up; the rest stays for the next session."""


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
        predict: Predict | None = None,
    ) -> None:
        """Nothing is contacted yet. ``in_time`` is asked between calls; once it says no, they end."""
        self._folder = folder
        self._sweep = sweep
        self._place = (uri, experiment, connect)
        self._in_time = in_time
        self._state = State(folder, uri, experiment)
        self._experiment: Experiment | None = None
        self._parent_ready = False
        self._digests: dict[Path, tuple[int, str]] = {}
        self._children = Children(folder, sweep, self._state, self._tick, predict)

    @property
    def refused(self) -> dict[str, str]:
        """The runs that MLflow does not take, and why."""
        return self._children.refused

    def unsent(self) -> dict[str, int]:
        """The runs that are not wholly sent, with the number of metric lines that wait in their spools."""
        return self._children.unsent()

    def send(self) -> None:
        """Send everything that is new.

        Raises:
            OutOfTime: ``in_time`` said no; what was sent until then is remembered.
            Exception: whatever MLflow raises when its store cannot be reached.
        """
        store = self._state.store
        if self._experiment is None and (store.parent is None or store.closed) and not self._news():
            return
        try:
            experiment = self._begin()
            for name in self._children.open_runs():
                self._tick()
                try:
                    self._children.send(experiment, name)
                except Exception as error:
                    if not _own_fault(error):
                        raise
                    self.refused[name] = redact(str(error))
                    log.warning("MLflow refuses run %s: %s", name, self.refused[name])
        finally:
            self._state.save()

    def finish(self, best: str | None = None) -> None:
        """Register the run ``best``, and mark the parent and the runs put aside as not running any more.

        Call it after :meth:`send`.
        """
        store = self._state.store
        if self._experiment is None or store.parent is None or store.closed:
            return
        if best is not None and best in store.models and store.best != best:
            register_best(self._experiment, self._sweep.name, store.runs[best], store.models[best])
            store.best = best
        aside = self._children.active()
        for run in aside:
            self._experiment.client.set_terminated(run, status="KILLED")
        self._experiment.client.set_terminated(store.parent, status="KILLED" if aside else "FINISHED")
        store.closed = True
        self._state.save()

    def _news(self) -> bool:
        store = self._state.store
        return bool(self.unsent()) or any(store.documents.get(n) != now for n, (_, now) in self._documents().items())

    def _begin(self) -> Experiment:
        """Connect; find or make the experiment and the parent run; send what has changed of its documents."""
        if self._experiment is None:
            uri, name, connect = self._place
            self._experiment = Experiment(uri, name, connect)
        experiment, store = self._experiment, self._state.store
        if store.parent is None:
            self._state.save()  # the sweep's own id first: it finds the parent if this process dies after the next call
            tags = {"lora_lab.sweep": store.sweep, **sweep_tags(self._sweep)}
            store.parent = experiment.find(
                f"tags.`lora_lab.sweep` = '{store.sweep}' and tags.`lora_lab.kind` = 'sweep'"
            )
            if store.parent is None:
                store.parent = experiment.create(self._sweep.name, tags)
            self._state.save()
        if not self._parent_ready:
            experiment.set_tags(store.parent, sweep_tags(self._sweep))
            experiment.client.update_run(store.parent, status="RUNNING", name=self._sweep.name)
            store.closed, store.experiment_id = False, experiment.id
            experiment.set_params(store.parent, sweep_params(self._sweep))
            self._parent_ready = True
        for name, (path, digest) in self._documents().items():
            if store.documents.get(name) != digest:
                self._tick()
                place = str(Path(name).parent)
                experiment.send_file(store.parent, path, "" if place == "." else place)
                store.documents[name] = digest
        return experiment

    def _documents(self) -> dict[str, tuple[Path, str]]:
        """What belongs to the parent run: files by their place there, with digests of what is in them."""
        found: dict[str, tuple[Path, str]] = {}
        for path in (*(self._folder / name for name in DOCUMENTS), *sorted((self._folder / REPORT).rglob("*"))):
            if path.is_file() and not path.name.startswith("."):
                found[path.relative_to(self._folder).as_posix()] = (path, self._digest(path))
        return found

    def _digest(self, path: Path) -> str:
        written = path.stat().st_mtime_ns
        known = self._digests.get(path)
        if known is None or known[0] != written:
            known = self._digests[path] = (written, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        return known[1]

    def _tick(self) -> None:
        if not self._in_time():
            raise OutOfTime


def _own_fault(error: Exception) -> bool:
    """True where one run is at fault, and the next ones can be sent."""
    return isinstance(error, LoraLabError) or getattr(error, "error_code", None) in OWN_FAULT
