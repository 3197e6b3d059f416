"""``lora-lab prune-files``: free space; the best adapters, all metrics and all results stay."""

from __future__ import annotations

import argparse

from lora_lab.errors import ConfigError

HELP = "remove adapters and checkpoints of settled runs, all but the best; metrics and results stay"
EXAMPLE = "lora-lab prune-files rank_alpha --keep 3 --dry-run"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prune-files``."""
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name in runs/, or its folder")
    parser.add_argument("--keep", type=int, default=3, help="trials whose files stay, the best ones (default: 3)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def run(args: argparse.Namespace) -> int:
    """Remove the files.

    Raises:
        ConfigError: --keep is negative.
        SweepFolderError: no such sweep.
    """
    from lora_lab.analysis import find_sweep
    from lora_lab.study.control import Control

    if args.keep < 0:
        raise ConfigError(f"--keep {args.keep}: must be 0 or more.")
    with Control(find_sweep(args.sweep)) as control:
        freed = control.prune_files(args.keep, dry=args.dry_run)
    would = "would be" if args.dry_run else "are"
    print(
        f"{freed.bytes / 1e6:,.1f} MB of {len(freed.runs)} runs {would} removed; {args.keep} best trials keep theirs."
    )
    return 0
