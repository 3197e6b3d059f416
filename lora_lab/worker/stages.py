"""Stems: checkpoints at the end of what a run has in common with longer ones, from which these begin."""

from __future__ import annotations

import logging
from pathlib import Path

from lora_lab.engine import checkpoint
from lora_lab.errors import CheckpointError
from lora_lab.files import read_json, write_json
from lora_lab.optim.schedules import factor
from lora_lab.spec import RunSpec

STAGE = "stage.json"

log = logging.getLogger(__name__)


def stem_of(spec: RunSpec, total: int) -> int | None:
    """The step up to which a run of ``total`` steps learns at the rates of any longer one; ``None``: none.

    All of them under a constant rate, those before the decay under warm-up-stable-decay.
    """
    longer = 1000 * total
    for step in range(total):
        if factor(spec.schedule, step, total) != factor(spec.schedule, step, longer):
            return step or None
    return total


def stem_for(spec: RunSpec, examples: int, *, kept: bool) -> int | None:
    """The step at which a run on so many ``examples`` leaves a stem, where one is to be ``kept``; ``None``: at none."""
    return stem_of(spec, spec.budget.total_steps(examples)) if kept else None


def begin(parent: Path, folder: Path, key: str) -> None:
    """Let the run in ``folder`` go on from its stage's stem, where there is one and it has no checkpoint of its own."""
    if (folder / checkpoint.FILE).exists():
        return
    try:
        found = checkpoint.read(parent, checkpoint.STEM)
    except CheckpointError as error:
        log.warning("%s is trained from its beginning: %s", folder.name, error)
        return
    if found is None:
        return
    tensors, state = found
    checkpoint.write(folder, tensors, state | {"key": key})
    write_json(folder / STAGE, f"{parent.name}@{state['step']}")


def begun_from(folder: Path) -> str | None:
    """Whose beginning was taken over, up to which step: ``t0000-s0@12``; ``None`` where the run began by itself."""
    try:
        return str(read_json(folder / STAGE))
    except FileNotFoundError:
        return None
