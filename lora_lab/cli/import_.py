"""``lora-lab import``: make a study again from the file that ``lora-lab export`` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "make a study again from a file that `lora-lab export` wrote"
EXAMPLE = "lora-lab import rank_alpha.json.gz --folder runs/theirs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``import``."""
    parser.add_argument("file", metavar="FILE", help="the file to read")
    parser.add_argument("--folder", help="the new sweep's folder (default: runs/ and the file's name)")


def run(args: argparse.Namespace) -> int:
    """Make the folder.

    Raises:
        SweepFolderError: the file is not one of these, or the folder holds a sweep.
    """
    from lora_lab.study.portable import import_study

    file = Path(args.file)
    folder = Path(args.folder) if args.folder else Path("runs") / file.name.split(".")[0]
    results = import_study(file, folder)
    print(f"{folder}: a study with {results} results. Look at it with: lora-lab report {folder}")
    return 0
