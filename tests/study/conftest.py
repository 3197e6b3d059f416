from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_lab.spec import Execution, ModelSpec, Outcome, RunResult, RunSpec, Space, Strategy, Sweep, pairs
from lora_lab.study import Run

BASE = RunSpec(model=ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})))
RANK_ALPHA = {"method.r": {"choices": [2, 8, 32]}, "method.alpha_over_r": {"choices": [0.5, 1, 2]}}


@pytest.fixture
def make_sweep() -> Callable[..., Sweep]:
    def make(space: dict[str, Any] | None = None, **fields: Any) -> Sweep:
        for kind in ("sampler", "pruner"):
            if isinstance(fields.get(kind), str):
                fields[kind] = Strategy(fields[kind])
        fields = {"name": "test", "base": BASE} | fields
        return Sweep(space=Space.from_tree(RANK_ALPHA if space is None else space), **fields)

    return make


@pytest.fixture
def execution(tmp_path: Path) -> Execution:
    return Execution(folder=str(tmp_path / "sweep"))


@pytest.fixture
def result_of() -> Callable[..., RunResult]:
    """A result of a run; its loss depends on nothing but the run's spec."""

    def make(run: Run, outcome: Outcome = Outcome.COMPLETED, **fields: Any) -> RunResult:
        loss = 1 + 1 / run.spec.method.r + run.spec.method.scaling / 10 + run.seed / 100
        result = RunResult(
            run=run.id,
            trial=run.trial,
            seed=run.seed,
            key=run.spec.key,
            outcome=outcome,
            point=pairs(run.point),
            eval_loss=loss if outcome is Outcome.COMPLETED else None,
            base_eval_loss=3.0,
        )
        return replace(result, **fields)

    return make
