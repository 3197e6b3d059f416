"""The points of a space as the planner sees them: those that take the same are one, with how many runs it stands for.

Most of what a sweep varies (learning rates, seeds, schedules) costs nothing; so a space of thousands of points is
often a handful of plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_lab.errors import LoraLabError, SpecError
from lora_lab.planner.device import device_kind, device_memory
from lora_lab.planner.prediction import Plan, plan
from lora_lab.planner.shape import Shape
from lora_lab.spec import Choices, Domain, Masks, RunSpec, Space, Sweep

_Takes = tuple[Shape, int]

Steps = Callable[[RunSpec], int | None]
"""Optimizer steps of a run; ``None`` where they cannot be known without its data."""


@dataclass(frozen=True)
class Planned:
    """Points that take the same: the values they share, and their plan or why there is none (``refusal``).

    ``runs`` is how many of the sweep's runs are like this (a share of them, where a sampler draws the points), and
    ``seconds`` the time of all of them, one after another (``None``: not known).
    """

    point: Mapping[str, Any]
    spec: RunSpec | None
    plan: Plan | None
    refusal: str = ""
    runs: float = 0.0
    seconds: float | None = None


def planned_points(
    sweep: Sweep, *, memory: int | None = None, lanes: int = 1, device: str = "auto", steps: Steps = lambda spec: None
) -> list[Planned]:
    """One entry for each set of a sweep's points that take the same, in the order of the points.

    Where a sampler draws, all combinations of the values that matter are planned, of a range its two ends. A point that
    contradicts itself, or that the model cannot carry, has the reason instead of a plan. Arguments as for
    :func:`~lora_lab.planner.prediction.plan`.

    Raises:
        SpecError: an impossible device, or ``lanes`` below 1.
    """
    kind = device_kind(device, present=memory is None)
    memory = device_memory(device) if memory is None else memory
    searched, points = _searched(sweep, kind)
    share = sweep.planned_trials * sweep.repeats / max(1, len(points))
    rows: dict[Any, Planned] = {}
    for point in points:
        shown = {path: point[path] for path in searched if path in point}
        try:
            spec = sweep.base.at(point)
            takes: Any = _takes(spec, kind)
            if takes not in rows:
                rows[takes] = Planned(
                    shown, spec, plan(spec, memory=memory, lanes=lanes, device=device, remedies=False)
                )
        except LoraLabError as error:
            takes, spec = tuple(shown.items()), None
            rows.setdefault(takes, Planned(shown, None, None, str(error)))
        row = rows[takes]
        rows[takes] = replace(row, runs=row.runs + share, seconds=_seconds(row, spec, share, steps))
    return _with_ways_out(list(rows.values()), memory, lanes, device)


def distinct_points(sweep: Sweep, device: str = "auto") -> list[tuple[Mapping[str, Any], RunSpec | None]]:
    """The values that matter and a run of each set of a sweep's points that take the same; ``None`` where no run
    accepts the point."""
    kind = device_kind(device, present=False)
    searched, points = _searched(sweep, kind)
    found: dict[Any, tuple[Mapping[str, Any], RunSpec | None]] = {}
    for point in points:
        shown = {path: point[path] for path in searched if path in point}
        try:
            spec = sweep.base.at(point)
            found.setdefault(_takes(spec, kind), (shown, spec))
        except SpecError:
            found.setdefault(tuple(shown.items()), (shown, None))
    return list(found.values())


def _searched(sweep: Sweep, kind: str) -> tuple[list[str], list[Mapping[str, Any]]]:
    """The paths that matter, and the points."""
    matters = {path: _values_that_matter(sweep, path, domain, kind) for path, domain in sweep.space.domains}
    conditions = {name for _, condition in sweep.space.conditions for name in condition.names}
    searched = [path for path, values in matters.items() if len(values) > 1 or path in conditions]
    return searched, _points(sweep, searched, matters)


def _points(sweep: Sweep, searched: list[str], matters: Mapping[str, list[Any]]) -> list[Mapping[str, Any]]:
    if sweep.points is not None:
        return list(sweep.points[: sweep.planned_trials])
    space = Space(
        tuple((path, Choices(tuple(matters[path]))) for path in searched),
        tuple((path, condition) for path, condition in sweep.space.conditions if path in searched),
    )
    return list(space.grid(sweep.base) or [])


def _seconds(row: Planned, spec: RunSpec | None, runs: float, steps: Steps) -> float | None:
    """The time of the row's runs so far and of ``runs`` more."""
    if spec is None or row.plan is None or row.plan.seconds_per_step is None or (count := steps(spec)) is None:
        return None
    if row.runs and row.seconds is None:
        return None
    return (row.seconds or 0.0) + runs * count * row.plan.seconds_per_step / row.plan.lanes


def _with_ways_out(rows: list[Planned], memory: int, lanes: int, device: str) -> list[Planned]:
    """What would make the largest fit of those that do not: what helps it helps the others, too."""
    failing = [row for row in rows if row.plan is not None and not row.plan.fits]
    if not failing:
        return rows
    largest = max(failing, key=lambda row: row.plan.peak_bytes if row.plan is not None else 0)
    assert largest.spec is not None
    told = replace(largest, plan=plan(largest.spec, memory=memory, lanes=lanes, device=device))
    return [told if row is largest else row for row in rows]


def _values_that_matter(sweep: Sweep, path: str, domain: Domain, kind: str) -> list[Any]:
    """The domain's values (a range's two ends) if some change what a step takes; else only the first."""
    values = list(domain.values) if isinstance(domain, (Choices, Masks)) else [domain.low, domain.high]
    found = set()
    try:
        around = sweep.space.around(path, sweep.base)
        for value in values:
            found.add(_takes(sweep.base.at(around | {path: value}), kind))
    except SpecError:
        return values  # it contradicts the base alone; with another path's value it may not
    return values if len(found) > 1 else values[:1]


def _takes(spec: RunSpec, kind: str) -> _Takes:
    """All that a plan of ``spec`` depends on."""
    return Shape.of(spec, kind), spec.budget.batch_size
