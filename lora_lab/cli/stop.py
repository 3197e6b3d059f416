"""``lora-lab stop``: end one run where it is."""

from __future__ import annotations

import argparse

HELP = "end one run where it is (PRUNED), while the sweep goes on"
EXAMPLE = "lora-lab stop rank_alpha t0003-s1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``stop``."""
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name in runs/, or its folder")
    parser.add_argument("run", metavar="RUN", help="a run, e.g. t0003-s1")


def run(args: argparse.Namespace) -> int:
    """Say so to the run's worker.

    Raises:
        SweepFolderError: no such sweep or run, or it is settled.
    """
    from lora_lab.analysis import find_sweep
    from lora_lab.study.control import Control

    with Control(find_sweep(args.sweep)) as control:
        print(control.stop(args.run))
    return 0
