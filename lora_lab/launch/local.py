"""A worker in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_lab.planner.device import device_kind
from lora_lab.spec import Execution, Recorder, Sweep
from lora_lab.study import Study
from lora_lab.tracking import Spool
from lora_lab.worker.capacity import Capacity
from lora_lab.worker.interrupt import Interrupt
from lora_lab.worker.tee import Tee
from lora_lab.worker.work import Worker

CPU_LANES = 9
"""Lanes at most on a CPU, where more of them only take memory: the base's products are large enough by then."""


def run(
    sweep: Sweep,
    execution: Execution,
    study: Study,
    recorder: Recorder,
    *,
    say: Callable[[str], None],
    settled: Callable[[int], None],
) -> bool:
    """Train what is left of ``sweep``; ``False`` when it was interrupted and more remains.

    ``say`` is told what happens, and ``settled`` how many of the sweep's runs are.
    """
    folder = Path(execution.folder)
    with Interrupt() as interrupt:
        worker = Worker(
            queue=study,
            folder=folder,
            run_folder=lambda run: folder / "runs" / run,
            recorder=Tee([Spool(folder), recorder]),
            interrupt=interrupt,
            lanes=most_lanes(sweep, execution),
            capacity=Capacity.of(execution),
            checkpoint_seconds=execution.launcher.checkpoint_seconds,
            keep_checkpoints=execution.launcher.keep_checkpoints,
            say=say,
            asked=lambda: settled(study.settled()),
        )
        return worker.work()


def most_lanes(sweep: Sweep, execution: Execution) -> int:
    """How many runs of ``sweep`` may train at once: ``pack.max_lanes``, or all of them, as far as memory goes."""
    if execution.max_lanes is not None:
        return execution.max_lanes
    wanted = max(1, sweep.planned_trials * (sweep.max_repeats or sweep.repeats))
    return min(wanted, CPU_LANES) if device_kind(execution.device) == "cpu" else wanted
