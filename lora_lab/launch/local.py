"""A worker in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_lab.planner import device_memory, lanes_that_fit
from lora_lab.planner.device import device_kind
from lora_lab.spec import Execution, Recorder, RunSpec, Sweep
from lora_lab.study import Study
from lora_lab.tracking import Spool
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
            lanes=lambda spec: lanes_for(sweep, spec, execution),
            device=execution.device,
            checkpoint_seconds=execution.launcher.checkpoint_seconds,
            keep_checkpoints=execution.launcher.keep_checkpoints,
            say=say,
            asked=lambda: settled(study.settled()),
        )
        return worker.work()


def lanes_for(sweep: Sweep, spec: RunSpec, execution: Execution) -> int:
    """How many runs of ``sweep`` on ``spec``'s base train at once: ``pack.max_lanes``, or what the planner says fits.

    At least one: a run that does not fit after all ends OUT_OF_MEMORY by itself.
    """
    if execution.max_lanes is not None:
        return execution.max_lanes
    wanted = sweep.planned_trials * (sweep.max_repeats or sweep.repeats)
    if device_kind(execution.device) == "cpu":
        wanted = min(wanted, CPU_LANES)
    if wanted == 1:
        return 1
    specs = [run for run in map(sweep.base.at, sweep.points or ({},)) if run.model == spec.model]
    largest = max([spec, *specs], key=_size)
    memory = execution.device_memory or device_memory(execution.device)
    return max(1, min(wanted, lanes_that_fit(largest, memory, device=execution.device)))


def _size(spec: RunSpec) -> tuple[int, int]:
    """Orders runs of one base by the memory they take: tokens in a micro-batch first, then adapter size."""
    return spec.budget.micro * spec.data.max_length, spec.method.r * len(spec.method.mask)
