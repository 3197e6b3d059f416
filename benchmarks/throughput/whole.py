"""A sweep from command to table: wall time of the peer's program, and of ``lora-lab sweep`` on the same sweep."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lora_lab import models
from lora_lab.files import read_json
from throughput import processes
from throughput.child import Job
from throughput.workload import SWEEP, alpaca_file

OURS = "lora-lab sweep"


def overrides(steps: int, examples: int) -> list[str]:
    """The sweep's data and budget: one epoch of real instructions where they are, else of the built-in tasks."""
    words = [f"budget.steps={steps}", f"data.train_size={examples}"]
    path = alpaca_file()
    return [*words, "data=alpaca", f"data.path={path}", "data.max_length=512"] if path else words


def measure(method: str, job: Job, words: Sequence[str], runs: int, count: int) -> tuple[float, dict[str, float]]:
    """Seconds from command to table, and each run's held-out loss, by its place in the sweep.

    ``job`` is one process of the peer that does it all; ``trainers`` divides its runs among ``count`` of them. Words
    after ``lora-lab sweep`` are its overrides.

    Raises:
        RuntimeError: a program failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = processes.environment(job.threads) | {"LORA_LAB_CACHE": str(_without_tokens(folder / "cache"))}
        if method.startswith(OURS):
            command = [sys.executable, "-c", "from lora_lab.cli.main import main; main()", "sweep", str(SWEEP), *words]
            command += [
                f"sweep.trials={runs}",
                f"sweep.dir={folder / 'sweep'}",
                f"device={job.device}",
                *method.removeprefix(OURS).split(),
            ]
            seconds = _timed([command], environment, folder)
            results = [read_json(path) for path in sorted((folder / "sweep" / "runs").glob("*/result.json"))]
            return seconds, {f"run{result['trial']:02d}": result["eval_loss"] for result in results}
        count = 1 if method == "trainer" else count
        environment["OMP_NUM_THREADS"] = str(max(1, job.threads // count))
        commands = []
        for index in range(count):
            mine = dict(list(job.specs.items())[index::count])
            path = folder / f"peer{index}.json"
            path.write_text(json.dumps(asdict(replace(job, specs=mine, threads=max(1, job.threads // count)))))
            commands.append([sys.executable, "-m", "throughput.today", str(path), str(folder)])
        seconds = _timed(commands, environment, folder)
        losses: dict[str, float] = {}
        for path in folder.glob("*.table.json"):
            losses |= read_json(path)
        return seconds, losses


def _timed(commands: Sequence[Sequence[str]], environment: dict[str, str], folder: Path) -> float:
    """Seconds from the start of the first command to the end of the last."""
    started = time.perf_counter()
    logs = [(folder / f"log{index}.txt").open("w+") for index in range(len(commands))]
    children = [
        subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for command, log in zip(commands, logs, strict=True)
    ]
    try:
        codes = [child.wait() for child in children]
    finally:
        for child in children:
            child.kill()
    seconds = time.perf_counter() - started
    for code, command, log in zip(codes, commands, logs, strict=True):
        log.seek(0)
        words = log.read()
        log.close()
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{words[-3000:]}")
    return seconds


def _without_tokens(folder: Path) -> Path:
    """A cache with the converted models, which both have, and no tokens: tokenising is part of what is timed."""
    folder.mkdir()
    made = models.cache_folder() / "models"
    if made.exists():
        (folder / "models").symlink_to(made)
    return folder
