"""``lora-lab compare``: the same keys in two sweeps; did anything move by more than seeds explain?"""

from __future__ import annotations

import argparse
import json

from lora_lab.errors import SpecError

HELP = "two sweeps of the same runs: did anything move by more than seeds explain?"
EXAMPLE = "lora-lab compare runs/before runs/after"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``compare``."""
    parser.add_argument("first", help="sweep A: a name in runs/, or a folder")
    parser.add_argument("second", help="sweep B")
    parser.add_argument("--metric", help="another number than the objective of A, e.g. seconds or peak_bytes")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="configurations that moved most (default: 20)")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--markdown", "--md", action="store_true", help="as Markdown")
    shape.add_argument("--json", action="store_true", help="everything, for a script")


def run(args: argparse.Namespace) -> int:
    """Print the comparison.

    Raises:
        SweepFolderError: no such sweep, or no result yet.
        SpecError: no run in common, or an unknown metric.
    """
    from rich.console import Console

    from lora_lab.analysis import compare, find_sweep, load_results
    from lora_lab.cli.summary import print_grid, say

    if args.top < 1:
        raise SpecError(f"--top: must be 1 or more, got {args.top}.")
    folders = [find_sweep(name) for name in (args.first, args.second)]
    found = compare(load_results(folders[0]), load_results(folders[1]), args.metric)
    if args.json:
        print(json.dumps({"a": str(folders[0]), "b": str(folders[1]), **found.to_tree()}, indent=1, allow_nan=False))
        return 0
    lines = [f"A: {folders[0]}  B: {folders[1]}", *found.sentences]
    if args.markdown:
        print("\n\n".join([*lines, found.grid(args.top).markdown().rstrip()]))
        return 0
    console = Console()
    for line in lines:
        say(console, line)
    say(console, "")
    print_grid(console, found.grid(args.top))
    return 0
