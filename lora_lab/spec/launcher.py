"""How workers are started and what they promise each other: :class:`LauncherSpec`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lora_lab.errors import SpecError
from lora_lab.spec.checks import one_of, positive
from lora_lab.spec.tree import Pairs, pairs

LAUNCHERS = ("local", "slurm", "ray")
PLACEMENTS = ("spread", "pack")


@dataclass(frozen=True)
class LauncherSpec:
    """Workers of a sweep. Like everything in an ``Execution``, it changes no result.

    ``lease_seconds`` without a sign of life after which a worker's runs are given to others; a run is checkpointed
    when its last checkpoint is ``checkpoint_seconds`` old; after ``equal_failures`` runs FAILED with one and the same
    error the sweep stops; ``keep_checkpoints`` keeps the last checkpoint of settled runs, from which ``extend`` and
    ``clone`` go on.

    ``workers`` are started, each with ``cpus_per_worker`` cores (``None``: this machine's, divided among them; a
    scheduler's own default). ``grace_seconds``: how long they may take to save when they are to end.
    ``follow=false``: the command starts them and returns, where they can do without it. ``poll_seconds``: how often
    they are looked after.

    Slurm: ``nodes`` jobs in an array, each of one node with ``gpus_per_node`` and a worker for each GPU (one without);
    so ``workers`` does not count. With ``gpus_per_worker`` of 2 or more, here and on Slurm, a worker has so many, for
    runs with ``model.shard``. ``time`` in minutes; ``memory_gb`` of a job; ``setup``: lines of the shell before
    the worker; ``python``: the interpreter's command there (``None``: this one); ``sbatch``: any other of its options.

    Ray: ``address`` of the cluster, ``local`` for one that lives with the sweep; ``gpus_per_worker`` and
    ``resources`` of Ray's own kind; ``placement``: ``spread`` over the nodes, or ``pack`` on few.
    """

    name: str = "local"
    workers: int = 1
    lease_seconds: float = 30.0
    checkpoint_seconds: float = 60.0
    equal_failures: int = 3
    keep_checkpoints: bool = True
    cpus_per_worker: int | None = None
    grace_seconds: float = 120.0
    follow: bool = True
    poll_seconds: float = 0.5
    nodes: int = 1
    gpus_per_node: int = 0
    time: int = 60
    partition: str | None = None
    memory_gb: float | None = None
    setup: tuple[str, ...] = ()
    python: str | None = None
    sbatch: Pairs = field(default_factory=pairs)
    address: str = "auto"
    gpus_per_worker: float = 0.0
    resources: Pairs = field(default_factory=pairs)
    placement: str = "spread"

    def __post_init__(self) -> None:
        one_of("launcher.name", self.name, LAUNCHERS)
        one_of("launcher.placement", self.placement, PLACEMENTS)
        for name in ("workers", "equal_failures", "cpus_per_worker", "nodes", "time"):
            positive(f"launcher.{name}", getattr(self, name))
        for name in ("lease_seconds", "checkpoint_seconds", "grace_seconds", "poll_seconds", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                unit = "GB" if name == "memory_gb" else "seconds"
                raise SpecError(f"launcher.{name}: must be a positive number of {unit}, got {value!r}.")
        for name in ("gpus_per_node", "gpus_per_worker"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise SpecError(f"launcher.{name}: must be 0 or more, got {getattr(self, name)!r}.")
        for name, value in self.resources:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise SpecError(f"launcher.resources.{name}: must be a positive number, got {value!r}.")
        if self.name == "slurm" and self.grace_seconds >= 60 * self.time:
            raise SpecError(
                f"launcher.grace_seconds: {self.grace_seconds:g} s to save in before the end, of launcher.time="
                f"{self.time} minutes in all; give less of the one or more of the other."
            )

    @property
    def jobs(self) -> int:
        """How many jobs the launcher starts: one a worker, under Slurm one a node."""
        return self.nodes if self.name == "slurm" else self.workers

    @property
    def gpus_a_worker(self) -> int:
        """How many of a node's GPUs a worker has, where they are handed out by us."""
        return max(1, int(self.gpus_per_worker))

    @property
    def workers_a_job(self) -> int:
        """Workers of a job: under Slurm one for each of its node's GPUs, or each :attr:`gpus_a_worker` of them."""
        return max(1, self.gpus_per_node // self.gpus_a_worker) if self.name == "slurm" else 1
