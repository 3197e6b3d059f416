from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_lab.spec import (
    EvalMetrics,
    Execution,
    ModelSpec,
    Outcome,
    RunResult,
    RunSpec,
    Space,
    StepMetrics,
    Sweep,
    TrackingSpec,
    pairs,
    run_id,
)
from lora_lab.tracking import Spool
from lora_lab.tracking.experiment import connect


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a real SQLite store, one for all tests: making one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    connect(uri)
    return uri


@pytest.fixture
def client(store: str) -> Any:
    return connect(store)


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """An experiment of its own for each test."""
    return str(request.node.name)


@pytest.fixture
def sweep() -> Sweep:
    base = RunSpec(model=ModelSpec("tiny", source="random", config=pairs({"model_type": "llama", "hidden_size": 32})))
    space = Space.from_tree(
        {"method.r": {"choices": [2, 8]}, "method.roles": {"masks": [["query"], ["query", "value"]]}}
    )
    return Sweep(name="masks and ranks", base=base, space=space, repeats=2)


@pytest.fixture
def execution(tmp_path: Path, store: str, experiment: str) -> Execution:
    return Execution(folder=str(tmp_path / "sweep"), tracking=TrackingSpec(uri=store, experiment=experiment))


class Training:
    """Stands for the worker and the engine: records runs and settles them, deterministically."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep = sweep
        self.folder = folder
        self.spool = Spool(folder)

    def runs(self) -> Iterator[tuple[str, int, dict[str, Any], RunSpec]]:
        for trial, point in enumerate(self.sweep.space.grid() or ()):
            for seed in self.sweep.seeds:
                yield run_id(trial, seed), trial, point, self.sweep.spec_of(point, seed)

    def record(self, name: str, spec: RunSpec, first: int = 0, last: int = 4, total: int = 4) -> None:
        self.spool.started(name, spec, total, first)
        if first == 0:
            self.spool.evaluation(name, self.evaluation(0))
        for step in range(first + 1, last + 1):
            self.spool.step(name, self.step(step))
            if step % 2 == 0:
                self.spool.evaluation(name, self.evaluation(step))

    @staticmethod
    def step(step: int) -> StepMetrics:
        return StepMetrics(step, step / 4, 3 - step / 10, 1e-3 / step, 0.5, 100, 40, 0.25)

    @staticmethod
    def evaluation(step: int) -> EvalMetrics:
        return EvalMetrics(step, 3.2 - step / 10, 500, 0.3, 0.1)

    def settle(self, name: str, trial: int, point: dict[str, Any], spec: RunSpec, **fields: Any) -> RunResult:
        folder = self.folder / "runs" / name
        result = RunResult(
            run=name,
            trial=trial,
            seed=spec.seed,
            key=spec.key,
            outcome=Outcome.COMPLETED,
            point=pairs(point),
            eval_loss=2.8,
            best_eval_loss=2.8,
            base_eval_loss=3.2,
            train_loss=2.6,
            exact_match=0.25,
            steps=4,
            tokens=400,
            seconds=1.0,
            trainable_parameters=1234,
            peak_bytes=1 << 30,
            adapter=f"runs/{name}/adapter",
            started=1_700_000_000.0 + trial,
            ended=1_700_000_060.0 + trial,
        )
        result = dataclasses.replace(result, **fields)
        if result.adapter == f"runs/{name}/adapter":
            (folder / "adapter").mkdir(parents=True, exist_ok=True)
            (folder / "adapter" / "adapter_config.json").write_text("{}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result.to_tree()))
        return result

    def all(self) -> None:
        for name, trial, point, spec in self.runs():
            self.record(name, spec)
            self.spool.ended(self.settle(name, trial, point, spec))


@pytest.fixture
def training(sweep: Sweep, execution: Execution) -> Training:
    folder = Path(execution.folder)
    folder.mkdir()
    (folder / "config.yaml").write_text("sweep: {storage: 'postgresql://me:s3cret@db/lab'}\n")
    (folder / "sweep.json").write_text(json.dumps(sweep.to_tree()))
    return Training(sweep, folder)


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any]], Any]:
    def wait(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError("waited in vain")

    return wait
