"""Several objectives: the configurations that no other beats in everything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from lora_lab.analysis.grouping import Configuration, configurations, repeats_of
from lora_lab.analysis.rendering import Grid
from lora_lab.spec import Objective


@dataclass(frozen=True)
class FrontPoint:
    """A configuration on the Pareto front and its mean over seeds of each objective, in their order."""

    configuration: Configuration
    values: tuple[float, ...]


def pareto_front(frame: pd.DataFrame) -> list[FrontPoint]:
    """The Pareto front of a sweep with several objectives, by the first of them; empty for a sweep with one.

    Configurations with seeds still to run, or of which a seed diverged or was pruned, are not compared.
    """
    objectives = objectives_of(frame)
    if not objectives:
        return []
    found = [configurations(frame, objective.metric) for objective in objectives]
    repeats = repeats_of(frame)
    points = []
    for same in zip(*found, strict=True):
        values = tuple(configuration.mean for configuration in same)
        if same[0].settled >= repeats and not same[0].failures and all(map(math.isfinite, values)):
            points.append(FrontPoint(same[0], values))
    signed = [tuple(o.sign * v for o, v in zip(objectives, p.values, strict=True)) for p in points]

    def beaten(row: tuple[float, ...]) -> bool:
        return any(other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in signed)

    kept = [(row, point) for row, point in zip(signed, points, strict=True) if not beaten(row)]
    return [point for _, point in sorted(kept, key=lambda item: (item[0], item[1].configuration.trials))]


def front_grid(frame: pd.DataFrame) -> Grid | None:
    """The Pareto front as a table; ``None`` for a sweep with one objective, or without a settled configuration."""
    front = pareto_front(frame)
    if not front:
        return None
    metrics = [objective.metric for objective in objectives_of(frame)]
    return Grid(
        title=("Pareto front",),
        head=("configuration", *metrics),
        rows=tuple((p.configuration.name or "the base settings", *map(_shown, p.values)) for p in front),
    )


def objectives_of(frame: pd.DataFrame) -> list[Objective]:
    """The sweep's objectives where it has several; else empty."""
    sweep = frame.attrs.get("sweep") or {}
    return [Objective.read(said, "sweep.objectives") for said in sweep.get("objectives", [])]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
