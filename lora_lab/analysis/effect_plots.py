"""The figures and tables of effects: which settings matter, and what each role is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lora_lab.analysis.figure import Axis, Figure, Series, named_ticks
from lora_lab.analysis.forest import Curve, Importance
from lora_lab.analysis.masks import Effect, MaskEffects
from lora_lab.analysis.naming import path_name, value_name
from lora_lab.analysis.rendering import Grid


def importance_figure(found: Importance) -> Figure:
    """Shares of variance, alone and with interactions, and PED-ANOVA's where it is known."""
    paths = found.table["path"].tolist()
    names = tuple(path_name(path, paths) for path in paths)
    columns = [("alone (fANOVA)", "alone"), ("with interactions", "total"), ("among the best tenth (PED-ANOVA)", "ped")]
    columns = [(title, name) for title, name in columns if found.table[name].notna().any()]
    series = tuple(
        Series(title, tuple(found.table[name].fillna(0.0)), names, kind="bars", colour=i, along="x")
        for i, (title, name) in enumerate(columns)
    )
    rows = tuple(
        (name, *(f"{100 * row[column]:.1f} %" if math.isfinite(row[column]) else "–" for _, column in columns))
        for name, row in zip(names, found.table.to_dict("records"), strict=True)
    )
    grid = Grid(("Share of the variance over the space",), ("setting", *(title for title, _ in columns)), rows)
    says = f"{names[0]} explains most of {found.metric}."
    return Figure(
        "importance", "What matters", says, Axis("share of variance"), Axis("", categories=names), series, grid
    )


def dependence_figure(curve: Curve, metric: str, paths: Sequence[str]) -> Figure:
    """The forest's mean prediction along one setting."""
    name = path_name(curve.path, paths)
    labels = tuple(value_name(v) for v in curve.values)
    x: tuple[Any, ...] = tuple(float(v) for v in curve.values) if curve.numeric else labels
    line = Series("", x, curve.means, kind="line" if curve.numeric else "points")
    grid = Grid(
        (f"{metric} along {name}",),
        (name, metric),
        tuple((a, f"{b:.4g}") for a, b in zip(labels, curve.means, strict=True)),
    )
    low, high = min(curve.means), max(curve.means)
    says = f"All else averaged, {metric} runs from {low:.4g} to {high:.4g} along {name}."
    axis = Axis(name, curve.log, None if curve.numeric else labels, named_ticks(curve.values) if curve.numeric else ())
    return Figure(
        f"dependence_{name}", f"{metric} along {name}, all else averaged", says, axis, Axis(metric), (line,), grid
    )


def effects_grid(title: str, effects: Sequence[Effect], head: str) -> Grid:
    """Effects with intervals and p as a table, largest first."""
    ordered = sorted(effects, key=lambda e: -abs(e.value))
    return Grid(
        (title,),
        ("", head, "95 % CI", "p"),
        tuple(
            (
                e.name,
                f"{e.value:+.3g}",
                "–" if math.isnan(e.low) else f"{e.low:+.3g} to {e.high:+.3g}",
                "–" if math.isnan(e.p) else f"{e.p:.2g}",
            )
            for e in ordered
        ),
    )


def shapley_grid(found: MaskEffects) -> Grid:
    """Every role's Shapley value, with what it costs."""
    rows = []
    for e in sorted(found.shapley, key=lambda e: -e.value):
        interval = "–" if math.isnan(e.low) else f"{e.low:+.3g} to {e.high:+.3g}"
        million, mb = found.per_million.get(e.name), found.per_mb.get(e.name)
        costs = [found.parameters.get(e.name), found.megabytes.get(e.name)]
        rows.append(
            (
                e.name,
                f"{e.value:+.3g}",
                interval,
                "–" if costs[0] is None else f"{costs[0]:,.0f}",
                "–" if million is None else f"{million.value:+.3g}",
                "–" if costs[1] is None else f"{costs[1]:.1f}",
                "–" if mb is None else f"{mb.value:+.3g}",
            )
        )
    better = "fall" if found.direction == "minimize" else "rise"
    return Grid(
        (f"Shapley value of each role: its share of the {better} of {found.metric}",),
        ("role", "share", "95 % CI", "parameters", "per million", "MB", "per MB"),
        tuple(rows),
        notes=found.notes,
    )


def shapley_figure(found: MaskEffects) -> Figure:
    """Shapley values with their intervals."""
    ordered = sorted(found.shapley, key=lambda e: -e.value)
    names = tuple(e.name for e in ordered)
    error = None if math.isnan(ordered[0].low) else tuple((e.low, e.high) for e in ordered)
    bars = Series("", tuple(e.value for e in ordered), names, kind="bars", along="x", error=error)
    says = f"{names[0]} helps most, {names[-1]} least."
    axis = Axis(f"share of the change in {found.metric} (right is better)")
    return Figure(
        "shapley", "What each role is worth", says, axis, Axis("", categories=names), (bars,), shapley_grid(found)
    )
