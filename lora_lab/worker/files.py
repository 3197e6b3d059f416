"""A run's files as it is begun, taken over from another worker, branched off another run, and settled."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lora_lab.engine import checkpoint
from lora_lab.engine.lane import Lane
from lora_lab.errors import CheckpointError
from lora_lab.files import read_json, write_bytes, write_json
from lora_lab.spec import Outcome

METRICS = "metrics.jsonl"
PARENT = "parent.json"


def take_over(folder: Path, attempt: int) -> None:
    """Put copies in place of the files that an earlier holder of the run, asleep somewhere, may still have open."""
    if attempt > 1:
        with contextlib.suppress(FileNotFoundError):
            write_bytes(folder / METRICS, (folder / METRICS).read_bytes(), durable=False)


def branch(parent: Path, folder: Path, key: str, *, step: int | None, fresh_optimizer: bool) -> None:
    """Let a run begin at its parent's checkpoint, unless it has a whole one of its own.

    Raises:
        CheckpointError: the parent has none, or a damaged one, or one of another step than ``step``.
    """
    with contextlib.suppress(CheckpointError):
        if checkpoint.read(folder) is not None:
            return
    there = checkpoint.fork(parent, folder, key, step=step, fresh_optimizer=fresh_optimizer)
    write_json(folder / PARENT, {"parent": parent.name, "step": there})


def parent_step(folder: Path) -> int | None:
    """The step at which a branch began; ``None`` where it never did."""
    try:
        return int(read_json(folder / PARENT)["step"])
    except FileNotFoundError:
        return None


def finish(lane: Lane | None, outcome: Outcome, *, keep: bool) -> None:
    """Remove the checkpoint of a run that has its result, unless others may branch off it."""
    if lane is None or outcome in (Outcome.PREEMPTED, Outcome.OUT_OF_MEMORY):
        return
    if not keep or outcome not in (Outcome.COMPLETED, Outcome.PRUNED):
        (lane.job.folder / checkpoint.FILE).unlink(missing_ok=True)
