"""``lora-lab retry``: train runs again that failed."""

from __future__ import annotations

import argparse

from lora_lab.errors import ConfigError, nearest

HELP = "take results back, so that their runs are trained again (FAILED and OUT_OF_MEMORY ones, if none are named)"
EXAMPLE = "lora-lab retry rank_alpha --outcome FAILED,OUT_OF_MEMORY"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``retry``."""
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name in runs/, or its folder")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="these runs only, e.g. t0003-s1")
    parser.add_argument("--outcome", default="FAILED,OUT_OF_MEMORY", help="outcomes, comma-separated")


def run(args: argparse.Namespace) -> int:
    """Take the results back and say how to go on.

    Raises:
        ConfigError: no such outcome.
        SweepFolderError: no such sweep or run.
    """
    from lora_lab.analysis import find_sweep, read_sweep
    from lora_lab.cli.summary import resume_command
    from lora_lab.spec import SETTLED, Outcome
    from lora_lab.study.control import Control

    names = [name.strip().upper() for name in args.outcome.split(",")]
    for name in names:
        if name not in SETTLED:
            raise ConfigError(
                f"--outcome: no outcome {name!r}{nearest(name, SETTLED)} Known: {', '.join(sorted(SETTLED))}."
            )
    folder = find_sweep(args.sweep)
    with Control(folder) as control:
        runs = control.retry([Outcome(name) for name in names], args.runs)
    if not runs:
        print(f"No run ended {' or '.join(names)}.")
        return 0
    print(f"{len(runs)} runs are in the queue again: {', '.join(runs[:12])}{' …' if len(runs) > 12 else ''}")
    print(f"Workers take them up; if none works on the sweep: {resume_command(read_sweep(folder))}")
    return 0
