"""``lora-lab plan``: what a run, or each point of a sweep, will take, before anything is allocated."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from lora_lab.planner import Plan
    from lora_lab.planner.points import Planned
    from lora_lab.spec import DataSpec, RunSpec

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


def _sweep(console: Console, name: str, overrides: Sequence[str], memory: int | None, args: argparse.Namespace) -> int:
    from lora_lab.config import compose_sweep
    from lora_lab.planner.points import planned_points

    composed = compose_sweep(name, overrides)
    sweep, execution = composed.sweep, composed.execution
    memory = execution.device_memory if memory is None else memory
    rows = planned_points(sweep, memory=memory, lanes=args.lanes, device=execution.device, steps=steps_of)
    plans = [row.plan for row in rows if row.plan is not None]
    times = [row.seconds for row in rows if row.plan is not None and row.plan.fits]
    known = [seconds for seconds in times if seconds is not None]
    tree = {
        "sweep": sweep.name,
        "fits": all(row.plan is not None and row.plan.fits for row in rows),
        "lanes_that_fit": min((plan.lanes_that_fit for plan in plans), default=0),
        "runs": sweep.planned_trials * sweep.repeats,
        "runs_that_fit": round(sum(row.runs for row in rows if row.plan is not None and row.plan.fits)),
        "seconds_per_sweep": sum(known) if len(known) == len(times) else None,
        "points": [_point_tree(row) for row in rows],
    }
    if args.json:
        print(json.dumps(tree, indent=1))
    else:
        _print_rows(console, tree, rows)
    return 0


def _point_tree(row: Planned) -> dict[str, Any]:
    planned = row.plan.to_tree() if row.plan else {"fits": False, "reasons": [row.refusal]}
    return {"point": dict(row.point), "runs": row.runs, "seconds": row.seconds} | planned


def steps_of(spec: RunSpec) -> int | None:
    """Optimizer steps of a run; ``None`` where only its tokenised data would tell."""
    from lora_lab import data
    from lora_lab.errors import DataError

    if spec.budget.steps is not None or spec.data.train_size is not None:
        return spec.budget.total_steps(spec.data.train_size or 0)
    if spec.data.name in ("hf", "callable"):
        return None  # what they give is known only once it was fetched
    try:
        return spec.budget.total_steps(_examples(spec.data, data.examples)) or None
    except DataError:
        return None


@functools.cache
def _examples(dataset: DataSpec, read: Callable[[DataSpec], tuple[list[Any], list[Any]]]) -> int:
    return len(read(dataset)[0])


def _time(seconds: float | None) -> str:
    return "unknown: no such device here" if seconds is None else f"{seconds:.3g} s at least, by its matrix products"


def _duration(seconds: float) -> str:
    from lora_lab.cli.progress import duration

    return duration(seconds) if seconds >= 1 else "less than a second"


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


def _print_rows(console: Console, tree: Mapping[str, Any], rows: Sequence[Planned]) -> None:
    from rich import box
    from rich.table import Table

    from lora_lab.spec import show, show_size

    paths = list(dict.fromkeys(path for row in rows for path in row.point))
    table = Table(box=box.SIMPLE_HEAD)
    for path in paths or ["configuration"]:
        table.add_column(path)
    for heading in ("trainable", "peak memory", "lanes that fit", "FLOPs a step", "seconds a step"):
        table.add_column(heading, justify="right")
    for row in rows:
        values = [show(row.point[path]) if path in row.point else "" for path in paths] or ["all points"]
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
    name, runs, seconds = tree["sweep"], tree["runs"], tree["seconds_per_sweep"]
    if first is not None:
        size, memory = f"{first.total_parameters:,}", show_size(first.memory)
        console.print(f"{name}: a base model of {size} parameters; {memory} to use.")
    time = "" if seconds is None else f"; {_duration(seconds)} at least, by their matrix products"
    console.print(f"{tree['runs_that_fit']} of {runs} runs fit{time}.")
    for row in rows:
        reasons = [row.refusal] if row.plan is None else row.plan.reasons
        if reasons:
            point = " ".join(f"{path}={show(value)}" for path, value in row.point.items()) or "every point"
            console.print(f"{point}: {'; '.join(reasons)}", style="yellow")
