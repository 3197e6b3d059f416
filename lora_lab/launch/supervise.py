"""Several workers on this machine: processes of their own, started, watched and stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_lab.errors import RunFailed
from lora_lab.spec import Execution, Recorder
from lora_lab.study import Study
from lora_lab.study.look import STORAGE_VARIABLE
from lora_lab.worker.interrupt import Interrupt

RESTARTS = 3
"""How often a worker that crashed is started again."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 120.0
"""How long workers may take to save what they train when they are asked to stop."""


@dataclass
class _Child:
    number: int
    process: subprocess.Popen[bytes]
    output: Path
    restarts: int = 0


def run(
    execution: Execution,
    study: Study,
    recorder: Recorder,
    *,
    say: Callable[[str], None],
    settled: Callable[[int], None],
) -> bool:
    """Let ``execution.launcher.workers`` processes train what is left; ``False`` when it was interrupted.

    A worker that crashes is started again, :data:`RESTARTS` times at most; the others take over what it held. What
    workers print goes to ``logs/worker-<n>.txt`` in the sweep's folder.

    Raises:
        RunFailed: all of them crashed, with the end of what one said.
    """
    wanted = execution.launcher.workers
    say(f"starting {wanted} workers, {threads_each(wanted)} threads each")
    seen = {result.run for result in study.results()}
    with Interrupt() as interrupt:
        children = [_start(number, execution) for number in range(wanted)]
        try:
            while any(child.process.poll() is None for child in children):
                interrupt.wait(POLL_SECONDS)
                if interrupt.requested:
                    return False
                settled(study.counts().runs)
                for result in study.results():
                    if result.run not in seen:
                        seen.add(result.run)
                        recorder.ended(result)
                for child in children:
                    _tend(child, execution, say)
        finally:
            _stop(children)
            settled(study.counts().runs)
    crashed = [child for child in children if child.process.returncode != 0]
    if len(crashed) == len(children):
        tail = crashed[0].output.read_text(errors="replace").strip().splitlines()[-5:]
        raise RunFailed(f"all {wanted} workers crashed; {crashed[0].output} ends with:\n" + "\n".join(tail))
    return True


def threads_each(workers: int) -> int:
    """The cores, divided among the workers."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def _start(number: int, execution: Execution) -> _Child:
    folder = Path(execution.folder)
    output = folder / "logs" / f"worker-{number}.txt"
    output.parent.mkdir(exist_ok=True)
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(threads_each(execution.launcher.workers)))
    if execution.storage is not None:
        environment[STORAGE_VARIABLE] = execution.storage
    words = [sys.executable, "-m", "lora_lab.cli.main", "worker", str(folder), "--parent", str(os.getpid())]
    if execution.allow_code:
        words.append("--allow-code")
    with output.open("ab") as file:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    return _Child(number, process, output)


def _tend(child: _Child, execution: Execution, say: Callable[[str], None]) -> None:
    code = child.process.poll()
    if code is None or code == 0 or child.restarts >= RESTARTS:
        return
    say(f"worker {child.number} crashed (exit code {code}, see {child.output}); it is started again")
    again = _start(child.number, execution)
    child.process, child.restarts = again.process, child.restarts + 1


def _stop(children: list[_Child]) -> None:
    """Ask those that still run to save and end, and end those that do not."""
    alive = [child.process for child in children if child.process.poll() is None]
    for process in alive:
        process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE_SECONDS
    for process in alive:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
