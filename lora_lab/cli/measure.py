"""``lora-lab measure``: what configurations really take, each alone in a fresh process, beside their plans."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.errors import LoraLabError, RunFailed

if TYPE_CHECKING:
    from lora_lab.spec import RunSpec

    _Asked = tuple[str, Mapping[str, Any], RunSpec | None]

HELP = "measure the memory of a run, a sweep's points or the article's comparisons, each in a process of its own"
EXAMPLE = "lora-lab measure model=tiny data.max_length=128 --compare optimizers --compare lengths"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "sweep", nargs="?", metavar="SWEEP", help="measure every point of this sweep (default: one run)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="WHAT",
        help="measure the run as a comparison does: optimizers, quantisation, lengths, ranks, full, methods, or all",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="timed steps (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")


def run(args: argparse.Namespace) -> int:
    """Print what each took.

    Raises:
        BadInput: the configuration cannot be used.
        RunFailed: nothing could be measured.
    """
    from rich.console import Console

    from lora_lab.worker.measuring import STEPS, measure

    console = Console(highlight=False, soft_wrap=True, stderr=True)
    name, overrides = args.sweep, list(args.overrides)
    if name is not None and "=" in name:
        name, overrides = None, [name, *overrides]
    device, asked = _asked(name, overrides, args.compare)
    rows: list[dict[str, Any]] = []
    for group, point, spec in asked:
        row: dict[str, Any] = {"of": group, "point": dict(point)}
        try:
            found = measure(spec, device=device, steps=args.steps or STEPS) if spec else None
            rows.append(row | (found.to_tree() if found else {"error_message": "no run accepts this point"}))
        except LoraLabError as error:
            rows.append(row | {"error_message": str(error)})
        if not args.json:
            console.print(_said(rows[-1]), style="dim")
    if all("error_message" in row for row in rows):
        raise RunFailed(f"nothing could be measured: {rows[0]['error_message']}")
    if args.json:
        print(json.dumps({"device": device, "rows": rows}, indent=1))
    else:
        _print(rows, markdown=args.markdown)
    return 0


def _asked(name: str | None, overrides: Sequence[str], compare: Sequence[str]) -> tuple[str, list[_Asked]]:
    """The device, and what is to be measured: the comparison, the point, its run (``None``: there is no such)."""
    from lora_lab.config import compose_sweep
    from lora_lab.config.compose import composed_run, device_of, run_of
    from lora_lab.config.overrides import read_overrides
    from lora_lab.config.schema import RUN
    from lora_lab.errors import ConfigError, SpecError
    from lora_lab.planner.points import distinct_points
    from lora_lab.worker.measuring import COMPARISONS, comparison

    if name is not None:
        if compare:
            raise ConfigError("--compare changes one run; leave the SWEEP out, or leave --compare out.")
        composed = compose_sweep(name, overrides)
        points = distinct_points(composed.sweep, composed.execution.device)
        return composed.execution.device, [(composed.sweep.name, point, spec) for point, spec in points]
    tree = composed_run(read_overrides(RUN, overrides))
    base = run_of(tree)
    if not compare:
        return device_of(tree), [("run", {}, base)]
    asked: list[_Asked] = []
    for group in list(COMPARISONS) if "all" in compare else compare:
        for point in comparison(group):
            try:
                asked.append((group, point, base.at(point)))
            except SpecError:
                asked.append((group, point, None))
    return device_of(tree), asked


def _said(row: Mapping[str, Any]) -> str:
    from lora_lab.analysis.naming import point_name
    from lora_lab.spec import show_size

    name = f"{row['of']}: {point_name(row['point'])}".removesuffix(": ")
    if "error_message" in row:
        return f"{name}: {row['error_message']}"
    return f"{name}: {show_size(row['live_bytes'])} live, {show_size(row['predicted_bytes'])} predicted"


def _print(rows: Sequence[Mapping[str, Any]], *, markdown: bool) -> None:
    from rich.console import Console

    from lora_lab.analysis.rendering import Grid
    from lora_lab.cli.summary import print_grid

    console = Console()
    for group in dict.fromkeys(row["of"] for row in rows):
        mine = [row for row in rows if row["of"] == group]
        cuda = any(row.get("allocated_bytes") for row in mine)
        head = ("configuration", "trainable", "predicted", "live tensors", "off by", "resident")
        head = (*head, *(("allocated", "reserved") if cuda else ()), "s a step")
        grid = Grid((group,), head, tuple(_cells(row, cuda, len(head)) for row in mine))
        if markdown:
            print(grid.markdown())
        else:
            print_grid(console, grid)
            print()


def _cells(row: Mapping[str, Any], cuda: bool, width: int) -> tuple[str, ...]:
    from lora_lab.analysis.naming import point_name
    from lora_lab.spec import show_size

    name = point_name(row["point"]) or "the run"
    if "error_message" in row:
        return (name, "not measured", *[""] * (width - 2))
    more = (show_size(row["allocated_bytes"]), show_size(row["reserved_bytes"])) if cuda else ()
    return (
        name,
        f"{row['trainable_parameters']:,}",
        show_size(row["predicted_bytes"]),
        show_size(row["live_bytes"]),
        f"{row['error']:+.1%}",
        show_size(row["rss_bytes"] - row["rss_before_bytes"]),
        *more,
        f"{row['seconds_per_step']:.3g}",
    )
