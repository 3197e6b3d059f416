"""A sweep that is stopped or killed in the middle goes on to the table of one that was left in peace."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import LORA_LAB, SMALL, environment

import lora_lab as package

Command = Callable[..., subprocess.CompletedProcess[str]]

SPACE = "sweep.space={method.r: {choices: [2, 8]}, method.alpha_over_r: {choices: [0.5, 2]}}"


def table(folder: Path, lora_lab: Command, name: str) -> str:
    done = lora_lab("report", name, "--markdown")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    return "\n".join(line for line in lines if not line.endswith(" s |"))  # how long runs took is not the same


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_to_the_same_table(how: signal.Signals, tmp_path: Path, lora_lab: Command) -> None:
    words = ("rank_alpha", *SMALL, SPACE, "tracking=none", "pack.max_lanes=3", "budget.steps=40")
    process = subprocess.Popen(
        [LORA_LAB, "sweep", *words], cwd=tmp_path, env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if " completed" in line:
            break
    time.sleep(0.5)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    settled = len(package.load_results(tmp_path / "runs" / "rank_alpha"))
    assert 1 <= settled < 8, "the test must stop it in the middle"
    if how is signal.SIGINT:
        assert process.returncode == 130, errors
        assert "lora-lab sweep rank_alpha" in errors and "Traceback" not in errors
        assert list((tmp_path / "runs" / "rank_alpha" / "runs").glob("*/checkpoint.safetensors"))
    done = lora_lab("sweep", *words)
    assert done.returncode == 0, done.stderr
    assert lora_lab("sweep", *words, "sweep.name=whole").returncode == 0
    stopped = package.load_results(tmp_path / "runs" / "rank_alpha").set_index("run").sort_index()
    whole = package.load_results(tmp_path / "runs" / "whole").set_index("run").sort_index()
    assert list(stopped.index) == list(whole.index) and list(stopped["key"]) == list(whole["key"])
    np.testing.assert_allclose(stopped["eval_loss"], whole["eval_loss"], rtol=1e-5)
    np.testing.assert_allclose(stopped["train_loss"], whole["train_loss"], rtol=1e-5)
    assert (stopped["tokens"] == whole["tokens"]).all() and (stopped["steps"] == whole["steps"]).all()
    assert table(tmp_path, lora_lab, "rank_alpha") == table(tmp_path, lora_lab, "whole")
