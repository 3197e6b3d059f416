"""Fixtures that several rooms share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from absl import logging as absl_logging
from browser import Browser
from command import LORA_LAB, environment
from hypothesis import settings
from postgres import Postgres, server

from lora_lab.files import write_json
from lora_lab.spec import (
    EvaluationSpec,
    ModelSpec,
    Objective,
    Outcome,
    RunResult,
    RunSpec,
    Space,
    Strategy,
    Sweep,
    pairs,
    run_id,
)

settings.register_profile("lora-lab", deadline=None)  # how fast the machine is, is not what is tested
settings.load_profile("lora-lab")

# lm-eval's tasks bring absl, whose handler closes its stream when Hydra sets up logging: pytest's own, if it may.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

Value = Callable[[Mapping[str, Any], int], float]


@pytest.fixture
def fabricate(tmp_path: Path) -> Callable[..., Sweep]:
    """Write a sweep's folder as a finished (or half-finished) sweep leaves it, from real specs and results.

    ``value(point, seed)`` is the eval_loss of a run; ``outcomes`` maps (trial, seed) to another outcome than
    COMPLETED, or to ``None`` for a run that has no result yet.
    """

    def write(
        space: Mapping[str, Any],
        value: Value = lambda point, seed: 1.0 + 0.01 * seed,
        *,
        folder: Path | None = None,
        name: str = "demo",
        repeats: int = 2,
        sampler: str = "grid",
        points: list[dict[str, Any]] | None = None,
        trials: int | None = None,
        objective: Objective | None = None,
        outcomes: Mapping[tuple[int, int], Outcome | None] | None = None,
        **fields: Any,
    ) -> Sweep:
        base = RunSpec(
            model=ModelSpec(name="tiny", source="random", config=pairs({"model_type": "llama"})),
            evaluation=EvaluationSpec(exact_match=True),
        )
        sweep = Sweep(
            name,
            base,
            Space.from_tree(space),
            objective or Objective(),
            Strategy(sampler),
            trials=trials,
            repeats=repeats,
        )
        folder = folder or tmp_path / "runs" / name
        write_json(folder / "sweep.json", sweep.to_tree() | {"key": sweep.key})
        grid = points if points is not None else sweep.space.grid() or []
        for trial, point in enumerate(grid[:trials]):
            for seed in sweep.seeds:
                outcome = (outcomes or {}).get((trial, seed), Outcome.COMPLETED)
                if outcome is None:
                    continue
                done = outcome is Outcome.COMPLETED
                loss = value(point, seed) if done else None
                run = run_id(trial, seed)
                measured: dict[str, Any] = {
                    "eval_loss": loss,
                    "best_eval_loss": loss,
                    "base_eval_loss": 2.5,
                    "train_loss": 0.5 if done else None,
                    "exact_match": 0.4 if done else None,
                    "base_exact_match": 0.02,
                    "steps": 60,
                    "tokens": 30_000,
                    "seconds": 10.0,
                    "trainable_parameters": 460_800,
                    "lane_bytes": 5_529_600,
                    "peak_bytes": 1_200_000_000,
                    "adapter": f"runs/{run}/adapter" if done else None,
                    "message": None if done else "the loss became NaN at step 41",
                    "started": 1_000.0 + 10 * trial,
                    "ended": 1_010.0 + 10 * trial,
                }
                result = RunResult(
                    run=run,
                    trial=trial,
                    seed=seed,
                    key=sweep.spec_of(point, seed).key,
                    outcome=outcome,
                    point=pairs(point),
                    **(measured | fields),
                )
                write_json(folder / "runs" / run / "result.json", result.to_tree())
        return sweep

    return write


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole session; take a database of your own from it."""
    yield from server()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, for the whole session."""
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


@pytest.fixture
def lora_lab(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``lora_lab("sweep", …)`` in the test's own folder."""

    def run(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LORA_LAB, *words],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
