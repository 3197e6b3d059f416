"""How workers are started and what they promise each other: :class:`LauncherSpec`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_lab.errors import SpecError
from lora_lab.spec.checks import positive


@dataclass(frozen=True)
class LauncherSpec:
    """Workers of a sweep. Like everything in an ``Execution``, it changes no result.

    ``workers`` processes on this machine; ``lease_seconds`` without a sign of life after which a worker's runs are
    given to others; a run is checkpointed when its last checkpoint is ``checkpoint_seconds`` old; after
    ``equal_failures`` runs FAILED with one and the same error the sweep stops; ``keep_checkpoints`` keeps the last
    checkpoint of settled runs, from which ``extend`` and ``clone`` go on.
    """

    name: str = "local"
    workers: int = 1
    lease_seconds: float = 30.0
    checkpoint_seconds: float = 60.0
    equal_failures: int = 3
    keep_checkpoints: bool = True

    def __post_init__(self) -> None:
        positive("launcher.workers", self.workers)
        positive("launcher.equal_failures", self.equal_failures)
        for name in ("lease_seconds", "checkpoint_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise SpecError(f"launcher.{name}: must be a positive number of seconds, got {value!r}.")
