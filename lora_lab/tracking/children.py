"""The runs of a sweep as MLflow's child runs: each found or made, followed, and settled."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_lab.errors import CheckpointError, LoraLabError
from lora_lab.files import read_json
from lora_lab.spec import RunResult, RunSpec, Sweep, from_tree, thaw, to_tree
from lora_lab.tracking.experiment import METRICS_A_CALL, Experiment, chunks
from lora_lab.tracking.facts import DataFacts, Facts, read_facts
from lora_lab.tracking.logged import log_model, model_name
from lora_lab.tracking.record import (
    SERIES,
    STATUS,
    axis_metrics,
    axis_params,
    axis_unknown,
    fact_tags,
    final_metrics,
    memory_metrics,
    result_tags,
    run_params,
    run_tags,
    score_errors,
    step_metrics,
)
from lora_lab.tracking.spool import read_spool, spool_path
from lora_lab.tracking.state import State
from lora_lab.tracking.store import redact

POINTS = 1000
"""Steps of a run that are sent, at most: of a longer run every second, third, … (the spool keeps them all)."""
DIGEST_LENGTH = 36
"""Characters of a data set's digest that MLflow keeps; the tag ``data_digest`` has them all."""

Predict = Callable[[RunSpec, str], Mapping[str, int]]
"""Bytes by part that a run alone is planned to take on a device."""

log = logging.getLogger(__name__)


@dataclass
class Child:
    """What this session knows of one run: how far its spool was read, and the last step sent of each series."""

    name: str
    mlflow: str | None = None
    offset: int = 0
    file: int | None = None
    spec: RunSpec | None = None
    total_steps: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    active: bool = False

    @property
    def trial(self) -> int:
        """The number of its trial."""
        return int(self.name[1:].split("-")[0])


class Children:
    """The runs in a sweep's ``folder``. ``tick`` is called between calls to MLflow, and may raise."""

    def __init__(
        self, folder: Path, sweep: Sweep, state: State, tick: Callable[[], None], predict: Predict | None
    ) -> None:
        self._folder = folder
        self._sweep = sweep
        self._state = state
        self._tick = tick
        self._predict = predict
        self._known: dict[str, Child] = {}
        self.refused: dict[str, str] = {}

    def open_runs(self) -> Iterator[str]:
        """The runs with something in their folder that are not known to be wholly sent or refused."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._folder / "runs") if entry.is_dir())
        except FileNotFoundError:
            return
        for name in names:
            if name not in self._state.done and name not in self.refused:
                yield name

    def unsent(self) -> dict[str, int]:
        """The runs that are not wholly sent, with the number of metric lines that wait in their spools."""
        out: dict[str, int] = {}
        for name in self.open_runs():
            child = self._known.get(name) or Child(name)
            waiting = sum(record["kind"] in ("step", "evaluation") for record in self._new_lines(child)[0])
            if waiting or (self._run_folder(name) / "result.json").exists():
                out[name] = waiting
        return out

    def active(self) -> list[str]:
        """MLflow's ids of the runs that are going on there."""
        return [child.mlflow for child in self._known.values() if child.active and child.mlflow is not None]

    def result(self, name: str) -> RunResult | None:
        """The result of a run, once it has one.

        Raises:
            CheckpointError: its file is torn.
        """
        try:
            return RunResult.from_tree(read_json(self._run_folder(name) / "result.json"))
        except FileNotFoundError:
            return None
        except (LoraLabError, KeyError, TypeError, ValueError) as error:
            # The study says so and stops, too; here it is one run that cannot be shown.
            raise CheckpointError(f"{name}: {error}") from error

    def send(self, experiment: Experiment, name: str) -> None:
        """Send what is new of a run."""
        child = self._known.setdefault(name, Child(name))
        result = self.result(name)  # first: what was recorded before the run was settled is in the spool by now
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
        if child.mlflow is None:
            self._enter(experiment, child, child.spec, result, records)
        elif not child.active and result is None:
            experiment.client.update_run(child.mlflow, status="RUNNING")
            child.active = True
        assert child.mlflow is not None
        for metrics in chunks(_points(child, records), METRICS_A_CALL):
            self._tick()
            experiment.client.log_batch(child.mlflow, metrics=list(metrics))
            child.sent.update({metric.key: metric.step for metric in metrics})
        child.offset, child.file = offset, file
        if result is not None:
            self._settle(experiment, child, child.mlflow, child.spec, result)

    def _run_folder(self, name: str) -> Path:
        return self._folder / "runs" / name

    def _new_lines(self, child: Child) -> tuple[list[dict[str, Any]], int, int | None]:
        """Lines not read yet; all of them again where the spool was cut (its steps that were sent are known)."""
        path = spool_path(self._folder, child.name)
        try:
            now = path.stat()
            same = now.st_ino == child.file and now.st_size >= child.offset
            records, offset = read_spool(path, child.offset if same else 0)
        except FileNotFoundError:
            return [], 0, None
        return records, offset, now.st_ino

    def _enter(
        self,
        experiment: Experiment,
        child: Child,
        spec: RunSpec,
        result: RunResult | None,
        records: Sequence[Mapping[str, Any]],
    ) -> None:
        """Find the run in MLflow, with what it has already, or make it."""
        from mlflow.entities import Metric

        store, client = self._state.store, experiment.client
        known = store.runs.get(child.name)
        if known is None:
            known = experiment.find(f"tags.`lora_lab.sweep` = '{store.sweep}' and tags.`lora_lab.run` = '{child.name}'")
        facts = read_facts(self._run_folder(child.name))
        begun = result.started if result is not None else None
        if begun is None and records:
            begun = records[0].get("time")
        there: Mapping[str, float] = {}
        if known is None:
            identity = {"mlflow.parentRunId": str(store.parent), "lora_lab.sweep": store.sweep}
            tags = {**run_tags(self._sweep, child.name, child.trial, spec, facts), **identity}
            known = experiment.create(child.name, tags, None if begun is None else int(begun * 1000))
        else:
            there = client.get_run(known).data.metrics
            for name in SERIES:
                if name in there:
                    child.sent[name] = max(metric.step for metric in client.get_metric_history(known, name))
            client.update_run(known, status="RUNNING")
        store.runs[child.name] = known
        unknown, at = axis_unknown(self._sweep), int(1000 * (time.time() if begun is None else begun))
        if first := [Metric(name, value, at, 0) for name, value in unknown.items() if name not in there]:
            client.log_batch(known, metrics=first)
        params = run_params(spec)
        experiment.set_params(known, axis_params(self._sweep, params) | params)
        if facts.data is not None:
            client.log_inputs(known, datasets=[_dataset(spec, facts.data)])
        child.mlflow, child.active = known, True

    def _settle(self, experiment: Experiment, child: Child, run: str, spec: RunSpec, result: RunResult) -> None:
        """Final metrics, tags, artifacts, the adapter as a model, and the status."""
        from mlflow.entities import Metric

        client, folder = experiment.client, self._run_folder(child.name)
        facts = read_facts(folder)
        ended = int((result.ended or (folder / "result.json").stat().st_mtime) * 1000)
        model = self._model(experiment, run, child.name, spec, result)
        found = final_metrics(result) | score_errors(result, spec, facts)
        found |= axis_metrics(self._sweep, found) | memory_metrics(self._planned(spec, facts), facts.memory)
        # A series that has a point at the last step keeps it: it is the same number.
        last = {name: value for name, value in found.items() if result.steps > child.sent.get(name, -1)}
        for some in chunks(list(last.items()), METRICS_A_CALL):
            metrics = [Metric(name, value, ended, result.steps, model_id=model) for name, value in some]
            client.log_batch(run, metrics=metrics)
        experiment.set_tags(run, fact_tags(facts) | result_tags(result))
        client.log_text(run, redact(json.dumps(to_tree(spec), indent=1)), "config.json")
        client.set_terminated(run, status=STATUS.get(result.outcome, "FAILED"), end_time=ended)
        self._state.done.add(child.name)
        self._known.pop(child.name)

    def _model(self, experiment: Experiment, run: str, name: str, spec: RunSpec, result: RunResult) -> str | None:
        """Log the run's own adapter as a model, and give its id; of a shared one, say whose it is."""
        from mlflow.entities import LoggedModelOutput

        if result.adapter is None:
            return None
        adapter = self._folder / result.adapter
        if not (adapter.is_relative_to(self._run_folder(name)) and adapter.exists()):
            experiment.set_tags(run, {"adapter_of": Path(result.adapter).parts[1:2][0]})
            return None
        self._tick()
        params = axis_params(self._sweep, run_params(spec)) | {"seed": str(spec.seed)}
        model = log_model(experiment, run, model_name(f"{self._sweep.name}-{name}"), adapter, spec, params)
        told = experiment.client.get_run(run).outputs  # MLflow would take the same output twice
        if told is None or model not in [output.model_id for output in told.model_outputs]:
            experiment.client.log_outputs(run, [LoggedModelOutput(model, result.steps)])
        self._state.store.models[name] = model
        return model

    def _planned(self, spec: RunSpec, facts: Facts) -> Mapping[str, int]:
        if self._predict is None or "device" not in facts.tags:
            return {}
        try:
            return self._predict(spec, facts.tags["device"])
        except LoraLabError as error:  # a model that is not on this machine: the run is shown without
            log.info("%s: its memory cannot be planned here: %s", spec.model.name, error)
            return {}


def _points(child: Child, records: Sequence[Mapping[str, Any]]) -> list[Any]:
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
                out.append(Metric(name, float(value), int(record["time"] * 1000), step))
                last[name] = step
    return out


def _dataset(spec: RunSpec, facts: DataFacts) -> Any:
    """The run's data set for MLflow: name, digest, where it comes from, and its size."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = redact(json.dumps(to_tree(spec.data)))
    name = redact(Path(spec.data.path).name if spec.data.path else spec.data.name)
    size = json.dumps({"train": facts.train, "evaluation": facts.evaluation})
    dataset = Dataset(name, facts.digest[:DIGEST_LENGTH], "lora_lab", source, schema=None, profile=size)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
