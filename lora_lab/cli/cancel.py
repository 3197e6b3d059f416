"""``lora-lab cancel``: stop a sweep on all its machines; what trains is saved."""

from __future__ import annotations

import argparse

HELP = "stop a sweep on all its machines; what trains is saved, and the sweep's command goes on with it"
EXAMPLE = "lora-lab cancel rank_alpha"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cancel``."""
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name in runs/, or its folder")


def run(args: argparse.Namespace) -> int:
    """Say so to all workers.

    Raises:
        SweepFolderError: no such sweep.
    """
    from lora_lab.analysis import find_sweep, read_sweep
    from lora_lab.cli.summary import resume_command
    from lora_lab.launch.jobs import Jobs, alive, execution_with, stop
    from lora_lab.study.control import Control

    folder = find_sweep(args.sweep)
    with Control(folder) as control:
        training = control.cancel()
    jobs = list(Jobs(folder).latest().values())
    if jobs:
        execution = execution_with(folder)
        living = alive(execution, jobs)
        stop(execution, living)
        if living:
            print(f"{len(living)} jobs are ended: {', '.join(job.id for job in living)}")
    print(f"Cancelled; {training} runs that train now are saved within seconds." if training else "Cancelled.")
    print(f"Go on with: {resume_command(read_sweep(folder))}")
    return 0
