"""``lora-lab latency``: what an adapter costs when it is served, beside the base and merged into it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from lora_lab.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd

    from lora_lab.analysis.rendering import Grid

HELP = "prefill and decode time, tokens/s and memory: base, adapter beside it, merged, and every method"
EXAMPLE = "lora-lab latency best:rank_alpha --methods bottleneck prompt_tuning"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``latency``."""
    parser.add_argument("adapters", nargs="+", help="base, best:SWEEP, SWEEP/RUN or a folder; model=… for their base")
    parser.add_argument("--methods", nargs="*", metavar="METHOD", help="untrained ones, too; no name: all of the table")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8], metavar="N", help="default: 1 2 4 8")
    parser.add_argument("--prompt", type=int, default=64, metavar="N", help="tokens of prefill (default: 64)")
    parser.add_argument("--new", type=int, default=16, metavar="N", help="tokens decoded (default: 16)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="measurements of each (default: 7)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="every row, for a script")
    shape.add_argument("--csv", action="store_true", help="every measurement")


def run(args: argparse.Namespace) -> int:
    """Measure and print the table, with a verdict for each variant.

    Raises:
        BadInput: adapters that cannot be used.
    """
    from lora_lab.adapters import resolve
    from lora_lab.bench.latency import BASE, measure, summary, variants, verdict
    from lora_lab.models import load
    from lora_lab.spec.method import METHODS
    from lora_lab.worker.bases import device_name

    for flag, value in (("batches", min(args.batches)), ("prompt", args.prompt), ("new", args.new)):
        if value < 1:
            raise SpecError(f"--{flag}: must be 1 or more, got {value}.")
    if args.rounds < 2:
        raise SpecError(f"--rounds: a spread needs 2 or more, got {args.rounds}.")
    words = [word for word in args.adapters if not word.startswith(("model=", "model."))]
    references = resolve(words, [word for word in args.adapters if word not in words])
    base = load(references[0].model, device_name(args.device))
    methods = () if args.methods is None else args.methods or tuple(METHODS)
    timed = variants(base, references, methods, _say)
    frame = measure(base, timed, batches=args.batches, prompt=args.prompt, new=args.new, rounds=args.rounds, say=_say)
    if args.csv:
        print(frame.to_csv(index=False, lineterminator="\n"), end="")
        return 0
    found = summary(frame)
    verdicts = {one.name: verdict(found, one.name) for one in timed if one.name != BASE}
    if args.json:
        print(json.dumps({"rows": found.to_dict("records"), "verdicts": verdicts}, indent=1))
        return 0
    _screen(found, verdicts)
    return 0


def grid(found: pd.DataFrame) -> Grid:
    """The summary as a table."""
    from lora_lab.analysis.rendering import Grid

    head = ("variant", "batch", "phase", "median ms", "q1 – q3", "tokens/s", "against base", "95 %", "memory MB")
    rows = tuple(
        (
            str(row["variant"]),
            str(row["batch"]),
            str(row["phase"]),
            f"{1e3 * row['median']:.2f}",
            f"{1e3 * row['q1']:.2f} – {1e3 * row['q3']:.2f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f} – {row['high']:.3f}",
            f"{row['memory'] / 1e6:.2f}",
        )
        for row in found.to_dict("records")
    )
    return Grid(("Latency",), head, rows, labels=3)


def _screen(found: pd.DataFrame, verdicts: dict[str, str]) -> None:
    from rich.console import Console

    from lora_lab.cli.summary import print_grid, say

    console = Console()
    print_grid(console, grid(found))
    for name, word in verdicts.items():
        say(console, f"{name}: {word}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
