"""``lora-lab export``: a study and its results as one file."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a sweep's study and results to one file (JSON; .gz is compressed); adapters and metrics stay"
EXAMPLE = "lora-lab export rank_alpha rank_alpha.json.gz"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name in runs/, or its folder")
    parser.add_argument("file", metavar="FILE", help="the file to write")


def run(args: argparse.Namespace) -> int:
    """Write the file.

    Raises:
        SweepFolderError: no such sweep, or the file cannot be written.
    """
    from lora_lab.analysis import find_sweep
    from lora_lab.study.portable import export_study

    results = export_study(find_sweep(args.sweep), Path(args.file))
    print(f"{args.file}: the study and {results} results. Make it again elsewhere with: lora-lab import {args.file}")
    return 0
