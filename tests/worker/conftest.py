"""A tiny sweep in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_lab.config import compose_sweep
from lora_lab.launch import local
from lora_lab.spec import RunResult
from lora_lab.study import Study
from lora_lab.worker.tee import Tee

Results = dict[str, RunResult]


@pytest.fixture
def swept(tmp_path: Path) -> Callable[..., Results]:
    """Run a tiny sweep over three ranks in this process, and give its results by run."""

    def run(*more: str) -> Results:
        composed = compose_sweep(
            "rank_alpha",
            ["model=tiny", "data.train_size=16", "data.eval_size=4", "budget.steps=8", "budget.batch_size=4",
             "evaluation.exact_match=false", "evaluation.every_steps=null", "tracking=none", "sweep.repeats=1",
             "sweep.space={method.r: {choices: [2, 4, 8]}}", f"sweep.dir={tmp_path}/sweep", "pack.max_lanes=3", *more],
        )  # fmt: skip
        with Study.open(composed.sweep, composed.execution) as study:
            local.run(
                composed.sweep, composed.execution, study, Tee([]), say=lambda text: None, settled=lambda runs: None
            )
            return {result.run: result for result in study.results()}

    return run
