"""``lora-lab plan``: what a run, or each point of a sweep, will take, before anything is allocated."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_lab.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from lora_lab.planner import Plan
    from lora_lab.planner.step import Shape
    from lora_lab.spec import Domain, RunSpec, Space

    _Takes = tuple[Shape, int]

HELP = "predict parameters, peak memory, FLOPs and lanes of a run or of a sweep's points"
EXAMPLE = (
    "lora-lab plan model=llama2_7b 'method.roles=[query,value]' data.max_length=1304 budget.micro_batch_size=1 --json"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="plan every point of this sweep (default: one run)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    parser.add_argument("--memory", metavar="SIZE", help="hold it against this much, e.g. 24GB (default: what is free)")
    parser.add_argument("--lanes", type=int, default=1, metavar="N", help="plan a pack of N such runs (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the plan. A run that does not fit is an answer, not a failure: 0."""
    from rich.console import Console

    from lora_lab.spec import read_size

    memory = None if args.memory is None else read_size(args.memory)
    console = Console(highlight=False, soft_wrap=True)
    name, overrides = args.sweep, list(args.overrides)
    if name is None or "=" in name:
        return _run(console, [*([] if name is None else [name]), *overrides], memory, args)
    return _sweep(console, name, overrides, memory, args)


def _run(console: Console, overrides: Sequence[str], memory: int | None, args: argparse.Namespace) -> int:
    from lora_lab.config.compose import composed_run, device_of, memory_of, run_of
    from lora_lab.config.overrides import read_overrides
    from lora_lab.config.schema import RUN
    from lora_lab.planner import plan

    tree = composed_run(read_overrides(RUN, overrides))
    memory = memory_of(tree) if memory is None else memory
    planned = plan(run_of(tree), memory=memory, lanes=args.lanes, device=device_of(tree))
    if args.json:
        print(json.dumps(planned.to_tree(), indent=1))
    else:
        _print_run(console, planned)
    return 0


@dataclass(frozen=True)
class _Row:
    """Points of a space that take the same: the values they share, and their plan or why there is none."""

    point: Mapping[str, Any]
    spec: RunSpec | None
    plan: Plan | None
    refusal: str = ""


def _sweep(console: Console, name: str, overrides: Sequence[str], memory: int | None, args: argparse.Namespace) -> int:
    from lora_lab.config import compose_sweep

    composed = compose_sweep(name, overrides)
    sweep = composed.sweep
    memory = composed.execution.device_memory if memory is None else memory
    rows = plan_space(sweep.base, sweep.space, memory=memory, lanes=args.lanes, device=composed.execution.device)
    fits = all(row.plan is not None and row.plan.fits for row in rows)
    lanes = min((row.plan.lanes_that_fit for row in rows if row.plan is not None), default=0)
    if args.json:
        points = [
            {"point": dict(row.point)} | (row.plan.to_tree() if row.plan else {"fits": False, "reasons": [row.refusal]})
            for row in rows
        ]
        print(json.dumps({"sweep": sweep.name, "fits": fits, "lanes_that_fit": lanes, "points": points}, indent=1))
    else:
        _print_rows(console, sweep.name, rows)
    return 0


def plan_space(base: RunSpec, space: Space, *, memory: int | None, lanes: int, device: str) -> list[_Row]:
    """One row for each set of points that take the same; ranges are planned at their ends.

    A point that contradicts itself, or that the model cannot carry, becomes a row with the reason.
    """
    from lora_lab.errors import MethodError, ModelError
    from lora_lab.planner import device_memory, plan
    from lora_lab.planner.device import device_kind

    kind = device_kind(device, present=memory is None)
    memory = device_memory(device) if memory is None else memory
    matters = {path: _values_that_matter(base, path, domain, kind) for path, domain in space.domains}
    searched = [path for path, values in matters.items() if len(values) > 1]
    seen: set[_Takes] = set()
    rows: list[_Row] = []
    for values in itertools.product(*(matters[path] for path in searched)):
        point = dict(zip(searched, values, strict=True))
        try:
            spec = base.at(point)
            takes = _takes(spec, kind)
            if takes not in seen:
                seen.add(takes)
                found = plan(spec, memory=memory, lanes=lanes, device=device, remedies=False)
                rows.append(_Row(point, spec, found))
        except (SpecError, ModelError, MethodError) as error:
            rows.append(_Row(point, None, None, str(error)))
    return _with_ways_out(rows, memory, lanes, device)


def _with_ways_out(rows: list[_Row], memory: int, lanes: int, device: str) -> list[_Row]:
    """What would make the largest fit of those that do not: what helps it helps the others, too."""
    from lora_lab.planner import plan

    failing = [row for row in rows if row.plan is not None and not row.plan.fits]
    if not failing:
        return rows
    largest = max(failing, key=lambda row: row.plan.peak_bytes if row.plan is not None else 0)
    assert largest.spec is not None
    told = replace(largest, plan=plan(largest.spec, memory=memory, lanes=lanes, device=device))
    return [told if row is largest else row for row in rows]


def _values_that_matter(base: RunSpec, path: str, domain: Domain, kind: str) -> list[Any]:
    """The domain's values (a range's two ends) if some change what a step takes; else only the first."""
    from lora_lab.spec import Choices, Masks

    values = list(domain.values) if isinstance(domain, (Choices, Masks)) else [domain.low, domain.high]
    found = set()
    for value in values:
        try:
            found.add(_takes(base.at({path: value}), kind))
        except SpecError:
            return values  # it contradicts the base alone; with another path's value it may not
    return values if len(found) > 1 else values[:1]


def _takes(spec: RunSpec, kind: str) -> _Takes:
    """All that a plan of ``spec`` depends on."""
    from lora_lab.planner.step import Shape

    return Shape.of(spec, kind), spec.budget.batch_size


def _time(seconds: float | None) -> str:
    return "unknown: no such device here" if seconds is None else f"{seconds:.3g} s at least, by its matrix products"


def _print_run(console: Console, planned: Plan) -> None:
    from lora_lab.spec import show_size

    share = planned.trainable_parameters / planned.total_parameters
    by_role = ", ".join(f"{role} {count:,}" for role, count in planned.by_role.items())
    named = {part.replace("_", " "): size for part, size in planned.parts.items()}
    lanes = "" if planned.lanes == 1 else f" for {planned.lanes} lanes"
    lines = {
        "trainable": f"{planned.trainable_parameters:,} of {planned.total_parameters:,} parameters ({share:.3%})",
        "by role": by_role or "none: the mask is empty",
        "peak memory": f"{show_size(planned.peak_bytes)}{lanes}, of {show_size(planned.memory)}",
        "made of": ", ".join(f"{part} {show_size(size)}" for part, size in named.items() if size),
        "FLOPs a step": f"{planned.flops_per_step:.3g}",
        "time a step": _time(planned.seconds_per_step),
        "lanes that fit": str(planned.lanes_that_fit),
    }
    for name, text in lines.items():
        console.print(f"{name:<16}{text}")
    if planned.fits:
        console.print("it fits", style="green")
    for reason in planned.reasons:
        console.print(f"does not fit: {reason}" if reason is planned.reasons[0] else f"  {reason}", style="yellow")


def _print_rows(console: Console, name: str, rows: Sequence[_Row]) -> None:
    from rich import box
    from rich.table import Table

    from lora_lab.spec import show, show_size

    paths = list(rows[0].point)
    table = Table(box=box.SIMPLE_HEAD)
    for path in paths or ["configuration"]:
        table.add_column(path)
    for heading in ("trainable", "peak memory", "lanes that fit", "FLOPs a step", "seconds a step"):
        table.add_column(heading, justify="right")
    for row in rows:
        values = [show(row.point[path]) for path in paths] or ["all points"]
        if row.plan is None:
            table.add_row(*values, "refused", *[""] * 4, style="yellow")
            continue
        cells = (
            f"{row.plan.trainable_parameters:,}",
            show_size(row.plan.peak_bytes),
            str(row.plan.lanes_that_fit),
            f"{row.plan.flops_per_step:.3g}",
            "" if row.plan.seconds_per_step is None else f"{row.plan.seconds_per_step:.2g}",
        )
        table.add_row(*values, *cells, style="" if row.plan.fits else "yellow")
    console.print(table)
    first = next((row.plan for row in rows if row.plan is not None), None)
    if first is not None:
        console.print(
            f"{name}: a base model of {first.total_parameters:,} parameters; {show_size(first.memory)} to use."
        )
    for row in rows:
        reasons = [row.refusal] if row.plan is None else row.plan.reasons
        if reasons:
            point = " ".join(f"{path}={show(value)}" for path, value in row.point.items()) or "every point"
            console.print(f"{point}: {'; '.join(reasons)}", style="yellow")
