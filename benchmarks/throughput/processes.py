"""Children: one process a method, or several that share the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from throughput.child import READY, Job, Outcome

HERE = Path(__file__).resolve().parent.parent


def run(jobs: Sequence[Job], folder: Path) -> list[Outcome]:
    """Do ``jobs`` at the same time, each in a fresh process; they begin together once all have loaded.

    Raises:
        RuntimeError: a child failed; its last words are in the message.
    """
    children = [_start(job, folder / f"job{index}.json") for index, job in enumerate(jobs)]
    try:
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline().strip() != READY:
                raise RuntimeError(_last_words(child))
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        for child in children:
            words = _last_words(child)
            if child.returncode:
                raise RuntimeError(words)
    finally:
        for child in children:
            child.kill()
    return [Outcome(**json.loads((folder / f"job{index}.json.out").read_text())) for index in range(len(jobs))]


def environment(threads: int) -> dict[str, str]:
    """This process's environment, with ``threads`` for every library that computes."""
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    told = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return os.environ | told | {"PYTHONPATH": path}


def _start(job: Job, path: Path) -> subprocess.Popen[str]:
    path.write_text(json.dumps(asdict(job)))
    return subprocess.Popen(
        [sys.executable, "-m", "throughput.child", str(path)],
        env=environment(job.threads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _last_words(child: subprocess.Popen[str]) -> str:
    _, errors = child.communicate()
    return f"a method's process ended with {child.returncode}:\n{errors[-3000:]}"
