"""Launchers with the outside world around them, for one suite over all of them (``tests/launch``)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from ray_cluster import ENVIRONMENT
from slurm_cluster import Slurm

from lora_lab.launch.launcher import Job


@dataclass(frozen=True)
class World:
    """Two workers by ``settings``; ``preempt(job, pid)`` takes the place of a job, whose worker is process ``pid``,
    away as its scheduler does."""

    settings: tuple[str, ...]
    preempt: Callable[[Job, int], None]
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment of commands."""


def local() -> World:
    """Processes; somebody sends one SIGTERM."""
    settings = ("launcher.workers=2", "launcher.cpus_per_worker=1")
    return World(settings, lambda job, pid: os.kill(pid, signal.SIGTERM))


def slurm(there: Slurm) -> World:
    """A job of a partition that goes first wants the node."""

    def preempt(job: Job, pid: int) -> None:
        node = there.call("squeue", "-h", "-j", job.id, "-o", "%N").strip()
        words = ["sbatch", "-p", "high", "-w", node, "-o", "/dev/null", "--wrap", "sleep 1"]
        subprocess.run(words, env=os.environ | there.environment, check=True, capture_output=True, cwd="/tmp")

    settings = ("launcher=slurm", "launcher.nodes=2", "launcher.grace_seconds=30", "launcher.time=5")
    return World(settings, preempt, there.environment)


def ray(address: str) -> World:
    """An actor is killed: its worker sees that it is gone."""

    def preempt(job: Job, pid: int) -> None:
        psutil.Process(psutil.Process(pid).ppid()).kill()

    return World(("launcher=ray", f"launcher.address={address}", "launcher.workers=2"), preempt, ENVIRONMENT)
