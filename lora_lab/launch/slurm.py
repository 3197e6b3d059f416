"""Workers in a Slurm array, through submitit (extra ``slurm``): one job a node, a worker for each of its GPUs.

Slurm sends SIGUSR2 before the time limit, and at a preemption where it is told to (docs/cluster.md); then the workers
save what they train and the job is queued again under its own id. SIGTERM only makes them save: after it Slurm itself
queues a preempted job again, and ends a cancelled one.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lora_lab.errors import LauncherError, RunFailed
from lora_lab.launch.launcher import Job, JobState, gpus_of, interpreter, not_installed, worker_words
from lora_lab.spec import Execution, thaw

TIMEOUTS = 10_000
"""How often a job may reach its time limit: a sweep ends, or is cancelled, before."""
STARTS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNS = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
ENDS = ("COMPLETED", "CANCELLED")
INTERRUPTED = 130
"""What a worker ends with that has saved what it trained."""
CALL_SECONDS = 60.0
"""How long one of Slurm's commands may take."""


class Slurm:
    """Jobs are known by Slurm's ids (``1234_5`` in an array). Their output, scripts and submitit's files are in
    ``logs/slurm/<submission>/``: a folder of its own each time, for job ids may come again on another cluster."""

    survives = True

    def __init__(self, execution: Execution) -> None:
        """
        Raises:
            LauncherError: submitit or Slurm's commands are not here.
        """
        self._execution = execution
        self._folder = Path(execution.folder).absolute()
        _submitit()
        for program in ("sbatch", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise LauncherError(
                    f"launcher=slurm: no {program} here. Run it where jobs are submitted, or choose launcher=local."
                )

    def start(self, places: Sequence[int]) -> list[Job]:
        """See :class:`~lora_lab.launch.launcher.Launcher`: one array."""
        import submitit

        executor = submitit.SlurmExecutor(
            self._new_folder(), max_num_timeout=TIMEOUTS, python=self._execution.launcher.python
        )
        executor.update_parameters(**parameters(self._execution))
        with _refusals():
            submitted = executor.map_array(
                Joiner(worker_words(self._execution), self._execution.launcher.gpus_a_worker), list(places)
            )
        workers = self._execution.launcher.workers_a_job
        logs = [job.paths.stdout.relative_to(self._folder) for job in submitted]
        return [
            Job("slurm", place, job.job_id, str(log), workers)
            for place, job, log in zip(places, submitted, logs, strict=True)
        ]

    def states(self, jobs: Sequence[Job]) -> dict[str, JobState]:
        """See :class:`~lora_lab.launch.launcher.Launcher`. Needs no accounting: ``squeue`` knows what lives, and of
        what it has forgotten submitit left a result or did not."""
        if not jobs:
            return {}
        listed = _call(
            "squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--user={getpass.getuser()}"
        )
        said = dict(line.strip().split("|", 1) for line in listed.splitlines() if "|" in line)
        return {job.id: self._state(job, said.get(job.id)) for job in jobs}

    def stop(self, jobs: Sequence[Job]) -> None:
        """See :class:`~lora_lab.launch.launcher.Launcher`: ``scancel``, that is SIGTERM and, after Slurm's
        ``KillWait``, SIGKILL."""
        if jobs:
            _call("scancel", *(job.id for job in jobs))

    def kill(self, jobs: Sequence[Job]) -> None:
        """See :class:`~lora_lab.launch.launcher.Launcher`."""
        alive = [job for job in jobs if self.states(jobs)[job.id].alive]
        if alive:
            _call("scancel", "--signal=KILL", "--full", *(job.id for job in alive))

    def close(self) -> None:
        """Nothing is held open."""

    def _new_folder(self) -> Path:
        folder = self._folder / "logs" / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        folder.mkdir(parents=True)
        return folder

    def _state(self, job: Job, said: str | None) -> JobState:
        if said in STARTS:
            return JobState.WAITING
        if said in RUNS:
            return JobState.RUNNING
        if said in ENDS or (said is None and self._has_result(job)):
            return JobState.ENDED
        return JobState.LOST

    def _has_result(self, job: Job) -> bool:
        log = self._folder / job.log
        return log.with_name(f"{job.id}_0_result.pkl").exists()


def partitions() -> set[str]:
    """The cluster's partitions.

    Raises:
        LauncherError: Slurm does not answer.
    """
    return {name.rstrip("*") for name in _call("sinfo", "--noheader", "--format=%P").split()}


def script(execution: Execution) -> str:
    """The script that ``sbatch`` would be given; nothing is submitted, and Slurm need not be here.

    Raises:
        LauncherError: submitit is not installed.
    """
    _submitit()
    from submitit.slurm.slurm import _make_sbatch_string

    logs = Path(execution.folder).absolute() / "logs" / "slurm"
    command = shlex.join([*interpreter(execution), "-u", "-m", "submitit.core._submit", str(logs)])
    return str(_make_sbatch_string(command, logs, map_count=execution.launcher.jobs, **parameters(execution)))


def parameters(execution: Execution) -> dict[str, Any]:
    """What :class:`submitit.SlurmExecutor` is told of a job."""
    launcher = execution.launcher
    said: dict[str, Any] = {
        "job_name": f"lora-lab-{Path(execution.folder).name}",
        "time": launcher.time,
        "nodes": 1,
        "ntasks_per_node": launcher.workers_a_job,
        "array_parallelism": 10_000,
        "signal_delay_s": int(launcher.grace_seconds),
        "stderr_to_stdout": True,
        "setup": list(launcher.setup) or None,
        "additional_parameters": {"requeue": True, **{name: thaw(value) for name, value in launcher.sbatch}},
    }
    optional = {
        "partition": launcher.partition,
        "gpus_per_node": launcher.gpus_per_node or None,
        "cpus_per_task": launcher.cpus_per_worker,
        "mem": None if launcher.memory_gb is None else f"{launcher.memory_gb * 1000:.0f}M",
    }
    return said | {name: value for name, value in optional.items() if value is not None}


@dataclass
class Joiner:
    """What submitit runs in each task of a job: a worker, in a process of its own, and Slurm's signals passed on."""

    words: list[str]
    gpus: int = 1
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _signals: list[int] = field(default_factory=list)

    def __call__(self, place: int) -> int:
        """Work until nothing is left; when Slurm wants the node back, save and let submitit queue the job again.

        Raises:
            RunFailed: the worker crashed.
        """
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGUSR2, signal.SIGTERM)}
        place_on_node = int(os.environ.get("SLURM_LOCALID", "0"))
        environment = dict(os.environ) | gpus_of(os.environ, place_on_node, self.gpus)
        environment["OMP_NUM_THREADS"] = os.environ.get("SLURM_CPUS_PER_TASK") or str(len(os.sched_getaffinity(0)))
        self._child = subprocess.Popen(
            [sys.executable, *self.words, "--parent", str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Slurm signals the whole group, and the worker is to hear it once
        )
        if self._signals:
            self._child.send_signal(signal.SIGTERM)
        code = self._child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        if signal.SIGUSR2 in self._signals:
            signal.raise_signal(signal.SIGUSR2)  # submitit's handler queues the job again and ends this process
        elif code not in (0, INTERRUPTED):
            raise RunFailed(f"worker {place} ended with exit code {code}; see above.")
        return code

    def checkpoint(self, place: int) -> Any:
        """What submitit queues again: the same, for what was trained is in the sweep's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Joiner(self.words, self.gpus), place)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)


def _submitit() -> None:
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError as error:
        raise not_installed("submitit", "slurm", error) from error


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn what ``sbatch`` says into a :class:`LauncherError`."""
    from submitit.core.utils import FailedJobError

    try:
        yield
    except (FailedJobError, subprocess.CalledProcessError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, subprocess.CalledProcessError) else error
        said = getattr(cause, "stderr", None) or str(error)
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise LauncherError(
            f"sbatch refuses the job: {text.strip()} See what it is given with --dry-run; options of Slurm's are "
            "launcher.partition, launcher.time and launcher.sbatch."
        ) from error


def _call(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=CALL_SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()
        raise LauncherError(f"{words[0]} does not answer: {said} See `lora-lab doctor launcher=slurm`.") from error
