"""``lora-lab report``: what a sweep found, as a screen, Markdown, CSV or JSON."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from lora_lab.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd

    from lora_lab.analysis import AblationTable, Best, Consistency, SweepRecord

HELP = "what a sweep found: ablation table, best configuration, consistency over seeds"
EXAMPLE = "lora-lab report rank_alpha --markdown > table.md"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``report``."""
    parser.add_argument(
        "sweep", nargs="?", help="a sweep's name in runs/, or its folder (default: the newest in runs/)"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="one row a run, all columns")
    shape.add_argument("--markdown", "--md", action="store_true", help="the report as Markdown")
    shape.add_argument("--json", action="store_true", help="everything the report says, for a script")
    parser.add_argument("--rows", metavar="PATH", help="config path down the table, e.g. method.r")
    parser.add_argument("--columns", metavar="PATH", help="config path across the table")
    parser.add_argument("--metric", help="another number than the sweep's objective, e.g. exact_match or peak_bytes")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="rows of a list, best first (default: 20)")


def run(args: argparse.Namespace) -> int:
    """Print the report.

    Raises:
        SweepFolderError: no such sweep, or no result yet.
        SpecError: an axis or metric that the sweep does not have.
        CheckpointError: a result file is torn.
    """
    from lora_lab.analysis import (
        ablation_table,
        best_configuration,
        consistency,
        find_sweep,
        load_results,
        read_sweep,
    )

    if args.top < 1:
        raise SpecError(f"--top: must be 1 or more, got {args.top}.")
    folder = find_sweep(args.sweep)
    frame = load_results(folder)
    if args.csv:
        print(csv_text(frame), end="")
        return 0
    table = ablation_table(frame, args.rows, args.columns, args.metric, top=args.top)
    best = best_configuration(frame, args.metric)
    steady = consistency(frame, args.metric)
    record = read_sweep(folder)
    if args.json:
        print(json.dumps(report_tree(record, frame, table, best, steady), indent=1, allow_nan=False))
    elif args.markdown:
        print(markdown_text(record, frame, table, best, steady, args.top), end="")
    else:
        _screen(record, frame, table, best, steady, args.top)
    return 0


def csv_text(frame: pd.DataFrame) -> str:
    """The frame as CSV, one row a run; masks and other lists as ``query+value``."""
    from lora_lab.analysis.naming import value_name

    flat = frame.copy()
    for name in flat.columns:
        if any(isinstance(value, tuple) for value in flat[name]):
            flat[name] = [value_name(value) if isinstance(value, tuple) else value for value in flat[name]]
    return flat.to_csv(index=False, lineterminator="\n")


def report_tree(
    record: SweepRecord, frame: pd.DataFrame, table: AblationTable, best: Best | None, steady: Consistency
) -> dict[str, Any]:
    """The report for ``--json``: sweep, counts, table cells, best configuration, consistency. No NaN: ``null``."""
    from lora_lab.analysis.grouping import plain_value

    rows = [{str(k): plain_value(v) for k, v in row.items()} for row in steady.table.to_dict("records")]
    return {
        "sweep": record.name,
        "folder": str(record.folder),
        "key": record.key,
        "planned_runs": record.planned_runs,
        "outcomes": {str(outcome): int(count) for outcome, count in frame["outcome"].value_counts().items()},
        "table": table.to_tree(),
        "best": None if best is None else best_tree(record, best),
        "consistency": steady.to_tree() | {"configurations": rows},
    }


def best_tree(record: SweepRecord, best: Best) -> dict[str, Any]:
    """The best configuration for JSON. ``std`` is ``null`` with one seed."""
    found = best.configuration
    return {
        "metric": best.metric,
        "direction": best.direction,
        "point": dict(found.point),
        "mean": found.mean,
        "std": found.std if math.isfinite(found.std) else None,
        "n": found.n,
        "base": found.base,
        "trial": best.trial,
        "run": best.run,
        "seed": best.seed,
        "value": best.value,
        "adapter": None if best.adapter is None else str(record.folder / best.adapter),
    }


def markdown_text(
    record: SweepRecord, frame: pd.DataFrame, table: AblationTable, best: Best | None, steady: Consistency, top: int
) -> str:
    """The report as a Markdown page."""
    from lora_lab.cli.summary import best_lines, headline, troubles

    parts = [f"# {record.name}", headline(record, frame) + "."]
    if found := troubles(frame):
        parts.append("\n".join(f"- {line}" for line in found))
    parts.append(table.markdown().rstrip("\n"))
    if best is not None:
        parts.append("  \n".join(best_lines(record, frame, best)))
    parts += ["## Consistency", steady.sentence]
    if best is not None:
        parts.append(steady.grid(top).markdown().rstrip("\n"))
    return "\n\n".join(parts) + "\n"


def _screen(
    record: SweepRecord, frame: pd.DataFrame, table: AblationTable, best: Best | None, steady: Consistency, top: int
) -> None:
    from rich.console import Console

    from lora_lab.cli.summary import best_lines, headline, print_grid, say, troubles

    console = Console()
    say(console, headline(record, frame), style="bold")
    for line in troubles(frame):
        say(console, line, style="yellow")
    say(console, "")
    print_grid(console, table.grid)
    if best is not None:
        for line in best_lines(record, frame, best):
            say(console, line)
        say(console, "")
        print_grid(console, steady.grid(top))
    say(console, steady.sentence)
