"""``lora-lab extend``: train one run on where it ends."""

from __future__ import annotations

import argparse

from lora_lab.errors import ConfigError

HELP = "train one run on for more epochs or steps, from its last checkpoint, as a run of its own"
EXAMPLE = "lora-lab extend rank_alpha t0003-s1 --epochs 2"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``extend``."""
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name in runs/, or its folder")
    parser.add_argument("run", metavar="RUN", help="a run, e.g. t0003-s1")
    parser.add_argument("--epochs", type=float, help="so many more epochs")
    parser.add_argument("--steps", type=int, help="so many more steps, for a run that is budgeted in steps")


def run(args: argparse.Namespace) -> int:
    """Put the branch into the queue.

    Raises:
        ConfigError: neither or both of --epochs and --steps.
        SweepFolderError: no such sweep or run, or its last checkpoint is gone.
        SpecError: the run is budgeted in the other unit.
    """
    from lora_lab.analysis import find_sweep, read_sweep
    from lora_lab.cli.summary import resume_command
    from lora_lab.study.control import Control

    given = [value for value in (args.epochs, args.steps) if value is not None]
    if len(given) != 1 or given[0] <= 0:
        raise ConfigError("extend: give one of --epochs N and --steps N, above 0.")
    folder = find_sweep(args.sweep)
    with Control(folder) as control:
        branch = control.extend(args.run, epochs=args.epochs, steps=args.steps)
    print(f"{branch} goes on where {args.run} ends.")
    print(f"Workers take it up; if none works on the sweep: {resume_command(read_sweep(folder))}")
    return 0
