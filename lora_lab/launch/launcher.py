"""What a launcher is: it starts jobs whose workers join a study, and knows how they are (:class:`Launcher`).

The study does the rest: workers share its runs, take over what the dead held, and hear orders. So a launcher never
learns what is trained, and any other scheduler will do that runs ``lora-lab worker SWEEP_DIR|STUDY_URL``. One suite
runs over all launchers (``tests/launch``): start, join, preempt, requeue, die, cancel, log.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from lora_lab.errors import LauncherError
from lora_lab.spec import Execution


class JobState(StrEnum):
    """How a job is. One that was preempted and is queued again is WAITING."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    """It found nothing left to do, or was asked to end."""
    LOST = "lost"
    """It crashed or was killed, and does not come back by itself."""

    @property
    def alive(self) -> bool:
        """It works, or will."""
        return self in (JobState.WAITING, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """One job of a launcher: ``place`` is its number in the sweep, which it keeps when it is started again; ``id`` the
    launcher's name for it, ``log`` the file of what it says (relative to the sweep's folder), ``workers`` how many
    work in it, ``process`` what identifies it where it is a process of a machine."""

    launcher: str
    place: int
    id: str
    log: str
    workers: int = 1
    process: Mapping[str, Any] | None = None


class Launcher(Protocol):
    """Starts jobs and looks after them. A job is known by its :class:`Job` alone, in any process of the user's.

    Every method raises :class:`~lora_lab.errors.LauncherError` where the scheduler refuses or is away.
    """

    survives: bool
    """Jobs go on when the process that started them ends."""

    def start(self, places: Sequence[int]) -> list[Job]:
        """Start a job at each place. Its workers join the study by themselves, as soon as it may run."""

    def states(self, jobs: Sequence[Job]) -> dict[str, JobState]:
        """How each of ``jobs`` is, by id."""

    def stop(self, jobs: Sequence[Job]) -> None:
        """Let ``jobs`` save what they train and end, and not come back. Waits for nobody."""

    def kill(self, jobs: Sequence[Job]) -> None:
        """End ``jobs`` at once."""

    def close(self) -> None:
        """Give connections back."""


def worker_words(execution: Execution) -> list[str]:
    """The worker's arguments after ``lora-lab``. No credential is among them: workers find the storage in the sweep's
    folder, and passwords in their environment or in the files that PostgreSQL's library looks for."""
    words = ["-m", "lora_lab.cli.main", "worker", str(Path(execution.folder).absolute())]
    return [*words, "--allow-code"] if execution.allow_code else words


def interpreter(execution: Execution) -> list[str]:
    """The command that runs Python where workers are."""
    said = execution.launcher.python
    return [sys.executable] if said is None else shlex.split(said)


def gpus_of(environment: Mapping[str, str], number: int, each: int = 1) -> dict[str, str]:
    """Variables that leave worker ``number`` of a node one of its GPUs, or ``each``; none where there are none.

    ``CUDA_VISIBLE_DEVICES`` of ``environment`` says which there are, else ``nvidia-smi`` is asked: torch takes seconds
    to load, and memory on the GPU.
    """
    seen = gpus_in(environment)
    mine = dict.fromkeys(seen[(number * each + i) % len(seen)] for i in range(each)) if seen else {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if seen else {}


def gpus_in(environment: Mapping[str, str]) -> list[str]:
    """The node's GPUs, by the names that ``CUDA_VISIBLE_DEVICES`` has for them."""
    said = environment.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [word.strip() for word in said.split(",") if word.strip()]
    if program := shutil.which("nvidia-smi"):
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False).stdout
        return [str(n) for n, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]
    return []


def not_installed(package: str, launcher: str, error: ModuleNotFoundError) -> LauncherError:
    """``package`` is needed and not there."""
    return LauncherError(
        f"launcher={launcher} needs {package}, which is not installed ({error}). "
        f"Install it: pip install 'lora-lab[{launcher}]'."
    )
