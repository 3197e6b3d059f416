"""``lora-lab report``: what a sweep found, as a screen, a page, Markdown, LaTeX, CSV, JSON or figures."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd

    from lora_lab.analysis import Report, SweepRecord

HELP = "what a sweep found: tables, consistency over seeds, what matters; as a screen, a page or for a paper"
EXAMPLE = "lora-lab report rank_alpha --html report.html"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``report``."""
    parser.add_argument(
        "sweep", nargs="?", help="a sweep's name in runs/, or its folder (default: the newest in runs/)"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="one row a run, all columns")
    shape.add_argument("--cells", action="store_true", help="the ablation table as CSV, one row a cell")
    shape.add_argument("--markdown", "--md", action="store_true", help="the whole report as Markdown")
    shape.add_argument("--latex", action="store_true", help="every table for a paper (booktabs)")
    shape.add_argument("--json", action="store_true", help="everything the report says, for a script")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page that opens offline")
    parser.add_argument("--figures", metavar="DIR", type=Path, help="write every figure as PNG and SVG")
    parser.add_argument("--store", metavar="URI", help="read the sweep of this name from an MLflow store instead")
    parser.add_argument("--experiment", metavar="NAME", help="the MLflow experiment it is in (default: any)")
    parser.add_argument("--rows", metavar="PATH", help="config path down the table, e.g. method.r; or several: a,b")
    parser.add_argument("--columns", metavar="PATH", help="config path across the table")
    parser.add_argument("--metric", help="another number than the sweep's objective, e.g. exact_match or peak_bytes")
    parser.add_argument("--baseline", metavar="POINT", help="test every cell against this one: r=8,alpha_over_r=1")
    parser.add_argument("--spread", choices=("ci", "std"), default="ci", help="behind ±: 95 %% CI (default) or std")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="rows of a list, best first (default: 20)")


def run(args: argparse.Namespace) -> int:
    """Print or write the report.

    Raises:
        SweepFolderError: no such sweep, no result yet, or a file that cannot be written.
        SpecError: an axis, metric or baseline that the sweep does not have.
        CheckpointError: a result file is torn.
        StorageError: an MLflow store that is not there, does not answer, or has no such sweep.
    """
    if args.top < 1:
        raise SpecError(f"--top: must be 1 or more, got {args.top}.")
    record, frame = _read(args)
    if args.csv and args.html is None and args.figures is None:
        print(csv_text(frame), end="")  # needs no analysis
        return 0
    report = analysed(args, frame, record.folder)
    written = write_files(args, record, frame, report)
    if args.csv:
        print(csv_text(frame), end="")
    elif args.json:
        print(json.dumps(report_tree(record, frame, report), indent=1, allow_nan=False))
    elif args.markdown:
        print(markdown_text(record, frame, report, args.top), end="")
    elif args.latex:
        print(latex_text(report, args.top), end="")
    elif args.cells:
        print(report.table.csv(), end="")
    elif not written:
        _screen(record, frame, report, args.top)
    shaped = args.csv or args.json or args.markdown or args.latex or args.cells
    for line in written:
        print(line, file=sys.stderr if shaped else sys.stdout)  # what a script reads stays whole
    return 0


def _read(args: argparse.Namespace) -> tuple[SweepRecord, pd.DataFrame]:
    """The sweep and its results, from its folder or from an MLflow store."""
    from lora_lab.analysis import find_sweep, load_results, read_sweep, record_of, results_frame
    from lora_lab.errors import SweepFolderError

    if args.store is None:
        if args.experiment is not None:
            raise SpecError("--experiment belongs to --store URI: a sweep's folder is in no experiment.")
        folder = find_sweep(args.sweep)
        return read_sweep(folder), load_results(folder)
    if args.sweep is None:
        raise SpecError("--store: name the sweep, as in: lora-lab report rank_alpha --store sqlite:///mlflow.db")
    from lora_lab.cli.ui import check_store
    from lora_lab.spec import TrackingSpec
    from lora_lab.tracking import check, read_store

    check_store(args.store)
    check(TrackingSpec(uri=args.store))
    tree, results = read_store(args.sweep, args.store, args.experiment)
    if not results:
        raise SweepFolderError(f"sweep {args.sweep!r} has no settled run in that store yet. Wait for the first one.")
    record = record_of(tree, Path(args.sweep))
    return record, results_frame(record, results)


def analysed(args: argparse.Namespace, frame: pd.DataFrame, folder: Path) -> Report:
    from lora_lab.analysis import configuration_means, report_of
    from lora_lab.analysis.grouping import objective_of
    from lora_lab.study import ped_anova

    metric, direction = objective_of(frame, args.metric, None)
    points, means, _ = configuration_means(frame, metric)
    rows = args.rows.split(",") if args.rows else None
    return report_of(
        frame,
        folder,
        rows=rows,
        columns=args.columns,
        metric=args.metric,
        baseline=_baseline(args.baseline),
        spread=args.spread,
        top=args.top,
        ped=ped_anova(points, means.tolist(), direction),
    )


def _baseline(text: str | None) -> dict[str, str] | None:
    """``r=8,alpha_over_r=1`` as a mapping; the values stay words, as tables show them."""
    if text is None:
        return None
    words = [word.partition("=") for word in text.split(",")]
    if not all(name and value for name, _, value in words):
        raise SpecError(
            f"--baseline: expected PATH=VALUE,PATH=VALUE, got {text!r}. E.g. --baseline r=8,alpha_over_r=1."
        )
    return {name.strip(): value.strip() for name, _, value in words}


def write_files(args: argparse.Namespace, record: SweepRecord, frame: pd.DataFrame, report: Report) -> list[str]:
    """Write the page and the figures that were asked for; what was written, a line each."""
    from lora_lab.analysis import draw, html_page
    from lora_lab.cli.summary import headline, troubles
    from lora_lab.files import folder_errors, write_text

    written = []
    if args.html is not None:
        text = html_page(report, record.name, headline(record, frame), facts(frame, report), troubles(frame))
        with folder_errors(args.html):
            write_text(args.html, text)
        written.append(f"{args.html} ({len(text.encode()) / 1e6:.1f} MB)")
    if args.figures is not None:
        written.append(f"{len(draw(report.figures, args.figures))} figures in {args.figures}")
    return written


def facts(frame: pd.DataFrame, report: Report) -> list[tuple[str, str]]:
    """The large numbers at the head of the page."""
    from lora_lab.analysis.tables import amount

    found = []
    if report.best is not None:
        best = report.best
        found.append(("Best configuration", best.configuration.name or "the base settings"))
        found.append((best.metric, f"{best.configuration.mean:.4g}"))
        if best.configuration.base is not None:
            found.append(("Base model", f"{best.configuration.base:.4g}"))
    if report.consistency.icc is not None and math.isfinite(report.consistency.icc.value):
        found.append(("ICC(1)", f"{report.consistency.icc.value:.2f}"))
    found.append(("Training time of all runs", amount("seconds", float(frame["seconds"].sum()))))
    return found


def csv_text(frame: pd.DataFrame) -> str:
    """The frame as CSV, one row a run; masks and other lists as ``query+value``."""
    from lora_lab.analysis.naming import value_name

    flat = frame.copy()
    for name in flat.columns:
        if any(isinstance(value, tuple) for value in flat[name]):
            flat[name] = [value_name(value) if isinstance(value, tuple) else value for value in flat[name]]
    return flat.to_csv(index=False, lineterminator="\n")


def report_tree(record: SweepRecord, frame: pd.DataFrame, report: Report) -> dict[str, Any]:
    """The report for ``--json``: counts, cells, best, consistency, and every section's words. No NaN: ``null``."""
    from lora_lab.analysis.grouping import plain_value
    from lora_lab.cli.state import best_tree

    steady, best = report.consistency, report.best
    rows = [{str(k): plain_value(v) for k, v in row.items()} for row in steady.table.to_dict("records")]
    return {
        "sweep": record.name,
        "folder": str(record.folder),
        "key": record.key,
        "planned_runs": record.planned_runs,
        "outcomes": {str(outcome): int(count) for outcome, count in frame["outcome"].value_counts().items()},
        "table": report.table.to_tree(),
        "best": None if best is None else best_tree(record, best),
        "consistency": steady.to_tree() | {"configurations": rows},
        "stability": [vars(s) for s in report.ranking.stability],
        "sections": {section.key: list(section.sentences) for section in report.sections},
    }


def markdown_text(record: SweepRecord, frame: pd.DataFrame, report: Report, top: int) -> str:
    """The report as a Markdown page; a figure is shown by its table."""
    from lora_lab.cli.summary import best_lines, headline, troubles

    parts = [f"# {record.name}", headline(record, frame) + "."]
    if found := troubles(frame):
        parts.append("\n".join(f"- {line}" for line in found))
    parts.append(report.table.markdown().rstrip("\n"))
    if report.best is not None:
        parts.append("  \n".join(best_lines(record, frame, report.best)))
    for section in report.sections:
        if section.key == "ablation" or (section.key == "consistency" and report.best is None):
            continue
        grids = (*section.grids, *(figure.table for figure in section.figures))
        parts += [f"## {section.title}", *([" ".join(section.sentences)] if section.sentences else [])]
        parts += [grid.markdown().rstrip("\n") for grid in grids]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex_text(report: Report, top: int) -> str:
    """Every table of the report for LaTeX; needs the packages booktabs and amssymb."""
    grids = [report.table.grid, report.consistency.grid(top)]
    grids += [grid for section in report.sections for grid in section.grids if grid not in grids]
    grids += [figure.table for section in report.sections if section.key == "roles" for figure in section.figures]
    return "% \\usepackage{booktabs,amssymb}\n" + "\n".join(grid.latex() for grid in grids)


def _screen(record: SweepRecord, frame: pd.DataFrame, report: Report, top: int) -> None:
    from dataclasses import replace

    from rich.console import Console

    from lora_lab.cli.summary import best_lines, headline, print_grid, say, troubles

    console = Console()
    say(console, headline(record, frame), style="bold")
    for line in troubles(frame):
        say(console, line, style="yellow")
    say(console, "")
    table = report.table
    if console.is_terminal and not table.grid.fits(console.width):
        table = replace(table, extras=())  # the scores stay whole; --html and a wider terminal have the rest
    print_grid(console, table.grid)
    if report.best is not None:
        for line in best_lines(record, frame, report.best):
            say(console, line)
        say(console, "")
        print_grid(console, report.consistency.grid(top))
    for section in report.sections:
        if section.sentences and section.key != "ablation":
            say(console, section.title, style="bold")
            say(console, " ".join(section.sentences))
            say(console, "")
