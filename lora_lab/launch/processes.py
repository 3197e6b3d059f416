"""Workers on this machine: a process each, with a set of cores of its own, or one of the GPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lora_lab.launch.launcher import Job, JobState, gpus_in, gpus_of, interpreter, worker_words
from lora_lab.spec import Execution
from lora_lab.study.lease import is_gone, this_process
from lora_lab.study.look import STORAGE_VARIABLE
from lora_lab.worker.capacity import GPUS_VARIABLE

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Processes:
    """Worker ``n`` has the ``n``-th share of the cores (:func:`share_of`) and says what it does in
    ``logs/worker-<n>.txt``. ``tied``: workers stop when this process is gone."""

    def __init__(self, execution: Execution, *, tied: bool = True) -> None:
        self.survives = not tied
        self._execution = execution
        self._folder = Path(execution.folder)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, places: Sequence[int]) -> list[Job]:
        """See :class:`~lora_lab.launch.launcher.Launcher`."""
        return [self._start(place) for place in places]

    def states(self, jobs: Sequence[Job]) -> dict[str, JobState]:
        """See :class:`~lora_lab.launch.launcher.Launcher`. How somebody else's child ended is not known."""
        return {job.id: self._state(job) for job in jobs}

    def stop(self, jobs: Sequence[Job]) -> None:
        """See :class:`~lora_lab.launch.launcher.Launcher`."""
        self._send(jobs, signal.SIGTERM)

    def kill(self, jobs: Sequence[Job]) -> None:
        """See :class:`~lora_lab.launch.launcher.Launcher`."""
        self._send(jobs, signal.SIGKILL)
        for job in jobs:
            if job.id in self._children:
                self._children[job.id].wait()

    def close(self) -> None:
        """Nothing is held open."""

    def _start(self, place: int) -> Job:
        launcher = self._execution.launcher
        cores = share_of(sorted(os.sched_getaffinity(0)), place, launcher.workers, launcher.cpus_per_worker)
        environment = dict(os.environ)
        for name in THREADS:
            environment[name] = str(min(len(cores), _number(os.environ.get(name)) or len(cores)))
        if self._execution.device in ("auto", "cuda"):
            environment[GPUS_VARIABLE] = str(len(gpus_in(environment)))
            environment |= gpus_of(environment, place, launcher.gpus_a_worker)
        if self._execution.storage is not None:
            environment[STORAGE_VARIABLE] = self._execution.storage
        words = [*interpreter(self._execution), *worker_words(self._execution)]
        if not self.survives:
            words += ["--parent", str(os.getpid())]
        log = Path("logs") / f"worker-{place}.txt"
        (self._folder / log).parent.mkdir(parents=True, exist_ok=True)
        with (self._folder / log).open("ab") as file:
            child = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(child.pid, cores)  # before it has threads: they inherit it
        process = this_process(child.pid)
        job = Job("local", place, f"{process['host']}:{child.pid}:{process['born']}", str(log), process=process)
        self._children[job.id] = child
        return job

    def _state(self, job: Job) -> JobState:
        child = self._children.get(job.id)
        if child is None:
            gone = job.process is None or is_gone(dict(job.process))
            return JobState.ENDED if gone else JobState.RUNNING
        code = child.poll()
        if code is None:
            return JobState.RUNNING
        return JobState.ENDED if code == 0 else JobState.LOST

    def _send(self, jobs: Sequence[Job], number: signal.Signals) -> None:
        here = this_process()
        for job in jobs:
            process = job.process or {}
            if process.get("host") == here["host"] and self._state(job).alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process["pid"], number)


def share_of(cores: Sequence[int], place: int, workers: int, each: int | None) -> list[int]:
    """The cores of the worker at ``place``: ``each``, or an equal share; some twice where there are too few.

    Shares do not overlap while there are cores enough, and none is idle where they divide evenly.
    """
    count = each or max(1, len(cores) // workers)
    first = place * count
    return sorted({cores[n % len(cores)] for n in range(first, first + min(count, len(cores)))})


def _number(said: str | None) -> int | None:
    return int(said) if said is not None and said.isdecimal() and int(said) > 0 else None
