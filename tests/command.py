"""The command line as a user runs it: a process of its own in a folder of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LORA_LAB = str(Path(sys.executable).with_name("lora-lab"))

SMALL = (
    "model=tiny",
    "data.train_size=64",
    "data.eval_size=16",
    "budget.steps=6",
    "budget.batch_size=4",
    "evaluation.every_steps=3",
    "evaluation.exact_match_size=4",
    "evaluation.max_new_tokens=4",
    "optimizer.lr=1e-2",
)
"""A sweep's settings for the tiny model: seconds, not minutes."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with wide plain output and one thread."""
    return os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""} | more
