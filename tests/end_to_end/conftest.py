"""The command line as a user runs it: a process of its own in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
