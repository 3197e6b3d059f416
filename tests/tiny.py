"""A tiny sweep for tests with real processes, and what is read of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

import lora_lab

SWEEP = (
    "sweep",
    "rank_alpha",
    "model=tiny",
    "data.train_size=64",
    "data.eval_size=8",
    "budget.steps=40",
    "budget.batch_size=4",
    "evaluation.every_steps=null",
    "evaluation.exact_match=false",
    "optimizer.lr=1e-2",
    "tracking=none",
    "pack.max_lanes=3",
    "sweep.repeats=2",
    "sweep.space={method.r: {choices: [2, 4, 8]}}",
    "launcher.lease_seconds=60",
    "launcher.checkpoint_seconds=0.3",
)
"""Six runs of 40 steps, three at once. The lease is so long that a slow machine is not taken for a dead one."""
SLEEPY = (*SWEEP, "launcher.lease_seconds=2")
"""The same for workers that are put to sleep, and are to be missed."""


def results(folder: Path) -> pd.DataFrame:
    return lora_lab.load_results(folder).set_index("run").sort_index()


def events(folder: Path) -> list[dict[str, Any]]:
    from lora_lab.study.opening import open_log

    log = open_log(None, folder, "")
    return log.read(0)
