"""``lora-lab clone``: branch off one run with other settings."""

from __future__ import annotations

import argparse

from lora_lab.errors import ConfigError

HELP = "branch off one run where it is now, with other settings (optimizer, schedule, budget, evaluation)"
EXAMPLE = "lora-lab clone rank_alpha t0003-s1 optimizer.lr=1e-4"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``clone``."""
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name in runs/, or its folder")
    parser.add_argument("run", metavar="RUN", help="a run, e.g. t0003-s1")
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="what is different, e.g. optimizer.lr=1e-4")


def run(args: argparse.Namespace) -> int:
    """Put the branch into the queue.

    Raises:
        ConfigError: not an override.
        SpecError: the settings change what the checkpoint is of, or contradict each other.
        SweepFolderError: no such sweep or run, or its checkpoint is gone.
    """
    from lora_lab.analysis import find_sweep, read_sweep
    from lora_lab.cli.summary import resume_command
    from lora_lab.config.overrides import parse
    from lora_lab.study.control import Control

    overrides = {}
    for line in args.overrides:
        override = parse(line)
        if override.is_sweep_override():
            raise ConfigError(f"clone: {line}: one value for each setting; give `clone` once for each branch.")
        overrides[override.key_or_group] = override.value()
    folder = find_sweep(args.sweep)
    with Control(folder) as control:
        branch = control.clone(args.run, overrides)
    print(f"{branch} branches off {args.run}.")
    print(f"Workers take it up; if none works on the sweep: {resume_command(read_sweep(folder))}")
    return 0
