"""The whole report of a sweep as one value; a page, a screen and a paper are renderings of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lora_lab.analysis import effect_plots, plots
from lora_lab.analysis.ablation import EXTRAS, ablation_table
from lora_lab.analysis.curves import learning_curves
from lora_lab.analysis.figure import Figure
from lora_lab.analysis.forest import Importance, importance
from lora_lab.analysis.gap import overfitting
from lora_lab.analysis.grouping import Best, best_configuration, configurations, objective_of, searched_paths
from lora_lab.analysis.masks import MaskEffects, mask_effects
from lora_lab.analysis.naming import path_name, point_name
from lora_lab.analysis.pareto import COSTS, pareto_front
from lora_lab.analysis.reliability import Consistency, consistency
from lora_lab.analysis.rendering import Grid
from lora_lab.analysis.stability import Ranking, ranking
from lora_lab.analysis.tables import BETTER, WORSE, AblationTable, amount

DEPENDENCE_CURVES = 4
"""Settings, the most important ones, whose partial dependence is drawn."""
MOST_INTERACTIONS = 10
SMALL_PEAK = 2**28
"""Bytes of a peak below which a process's own needs drown it."""
MOST_PEAKS = 20
"""Different peaks that are listed."""
LEAST_SHARE = 0.001
"""Share of variance below which a pair is not listed."""


@dataclass(frozen=True)
class Section:
    """A part of the report: what it found in sentences, its tables, its figures (each with a table of its own)."""

    key: str
    title: str
    sentences: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything that is said of a sweep; make one with :func:`report_of`."""

    metric: str
    direction: str
    table: AblationTable
    best: Best | None
    consistency: Consistency
    ranking: Ranking
    importance: Importance | None
    masks: MaskEffects | None
    sections: tuple[Section, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, in order."""
        return tuple(itertools.chain.from_iterable(section.figures for section in self.sections))

    @property
    def findings(self) -> tuple[str, ...]:
        """The first sentence of each section that has one."""
        return tuple(section.sentences[0] for section in self.sections if section.sentences)


def report_of(
    frame: pd.DataFrame,
    folder: Path | str | None = None,
    *,
    rows: str | Sequence[str] | None = None,
    columns: str | None = None,
    metric: str | None = None,
    baseline: Mapping[str, Any] | None = None,
    spread: str = "ci",
    top: int = 20,
    ped: Mapping[str, float] | None = None,
) -> Report:
    """Analyse a results frame. ``folder`` is the sweep's, for learning curves; the rest as in :func:`ablation_table`.

    ``ped`` are PED-ANOVA's shares by path (``lora_lab.study.ped_anova``), where they were asked for.

    Raises:
        SpecError: an unknown metric, axis or baseline.
    """
    metric, direction = objective_of(frame, metric, None)
    beside = [name for name in EXTRAS if name in frame and name != metric and frame[name].notna().any()]
    table = ablation_table(
        frame, rows, columns, metric, direction, top=top, spread=spread, baseline=baseline, extras=beside
    )
    best = best_configuration(frame, metric, direction)
    steady = consistency(frame, metric, direction)
    order = ranking(frame, metric, direction)
    matters = importance(frame, metric)
    if matters is not None and ped:
        matters = matters.with_ped(ped)
    masks = mask_effects(frame, metric, direction)
    sections = [
        _ablation(table),
        _consistency(frame, metric, steady, order, top),
        _importance(matters),
        _masks(masks),
        _overfitting(frame),
        _pareto(frame, metric, direction),
        _memory(frame),
        _curves(frame, folder, None if best is None else best.run),
    ]
    shown = tuple(section for section in sections if section is not None)
    return Report(metric, direction, table, best, steady, order, matters, masks, shown)


def _ablation(table: AblationTable) -> Section:
    figure = plots.ablation_figure(table)
    return Section("ablation", "Ablation", tuple(_table_sentences(table)), (table.grid,), (figure,) if figure else ())


def _table_sentences(table: AblationTable) -> list[str]:
    """The best cell beside the base model, and what the tests against the baseline came to."""
    if table.best is None:
        return []
    i, j = table.best
    values = (*table.rows[i], *([table.columns[j]] if table.column_path else []))
    name = point_name(dict(zip(table.paths, values, strict=True))) or "The base settings"
    base = table.base[j] if table.base is not None else None
    beside = "" if base is None else f" (base model {base:.{table.digits}f})"
    said = [f"{name} is best: {table.metric} {table.cells[i][j].text(table.digits, table.spread)}{beside}."]
    marks = [cell.mark(table.direction) for row in table.cells for cell in row]
    if table.baseline is not None:
        said.append(f"{marks.count(BETTER)} cells are better than the baseline and {marks.count(WORSE)} worse.")
    return said


def _consistency(frame: pd.DataFrame, metric: str, steady: Consistency, order: Ranking, top: int) -> Section:
    found = [c for c in configurations(frame.drop_duplicates("key"), metric) if c.n]
    figures = [plots.consistency_figure(steady, found, top), plots.stability_figure(order.stability, 4)]
    return Section(
        "consistency",
        "Consistency over seeds",
        (*steady.sentences, *order.sentences),
        (),
        tuple(figure for figure in figures if figure),
    )


def _importance(found: Importance | None) -> Section | None:
    if found is None:
        return None
    paths = found.table["path"].tolist()
    grids = []
    if found.interactions and found.interactions[0].share >= LEAST_SHARE:
        rows = tuple(
            (" × ".join(path_name(path, paths) for path in pair.paths), f"{100 * pair.share:.1f} %")
            for pair in found.interactions[:MOST_INTERACTIONS]
            if pair.share >= LEAST_SHARE
        )
        grids.append(Grid(("Pairs that act together, beyond each alone",), ("pair", "share of variance"), rows))
    curves = [effect_plots.dependence_figure(curve, found.metric, paths) for curve in found.curves[:DEPENDENCE_CURVES]]
    figures = (effect_plots.importance_figure(found), *curves)
    return Section("importance", "What matters", found.sentences, tuple(grids), figures)


def _masks(found: MaskEffects | None) -> Section | None:
    if found is None:
        return None
    said = [found.worth("projection")]
    mixed = [f"{name} is mixed with {', '.join(others)}" for name, others in list(found.aliases.items())[:6]]
    if mixed:
        said.append(f"Aliasing: {'; '.join(mixed)}{' …' if len(found.aliases) > 6 else ''}.")
    title = f"Main effects: {found.metric} with the role minus without it"
    grids = [effect_plots.effects_grid(title, found.main, "effect")]
    if found.interactions:
        largest = sorted(found.interactions, key=lambda e: -abs(e.value))[:MOST_INTERACTIONS]
        grids.append(effect_plots.effects_grid("Largest two-way interactions", largest, "effect"))
    return Section("roles", "Which layers", tuple(said), tuple(grids), (effect_plots.shapley_figure(found),))


def _overfitting(frame: pd.DataFrame) -> Section | None:
    found = overfitting(frame)
    if found is None:
        return None
    figures = [plots.ablation_figure(table) for table in found.tables]
    drawn = tuple(figure for figure in figures if figure)
    return Section("overfitting", "Overfitting", found.sentences, (), tuple(_renamed(f, "overfitting") for f in drawn))


def _renamed(figure: Figure, prefix: str) -> Figure:
    key = figure.key.replace("ablation", prefix)
    title = figure.title.replace("gap by", "Held-out minus training loss by")
    return Figure(key, title, figure.says, figure.x, figure.y, figure.series, figure.table)


def _pareto(frame: pd.DataFrame, metric: str, direction: str) -> Section | None:
    costs = [name for name in COSTS if name in frame and name != metric and frame[name].notna().any()]
    if not costs or not searched_paths(frame):
        return None
    table = pareto_front(frame, metric, costs)
    if len(table) < 2:
        return None
    front = table[table["front"]]
    best = front.iloc[0]["name"]
    said = f"{len(front)} of {len(table)} configurations are beaten by no other in {metric}, memory and time together; "
    said += f"{best} has the best {metric} of them."
    figures = tuple(plots.pareto_figure(table, metric, cost, direction) for cost in costs)
    return Section("pareto", "Loss, memory and time", (said,), (), figures)


def _memory(frame: pd.DataFrame) -> Section | None:
    """Predicted against measured peaks of the packs that the runs were in, the base model included."""
    if not {"predicted_bytes", "training_bytes"} <= set(frame.columns):
        return None
    found = frame[(frame["predicted_bytes"] > 0) & (frame["training_bytes"] > 0)]
    if found.empty:
        return None
    ratio = found["training_bytes"] / found["predicted_bytes"]
    said = (
        f"Measured over predicted peak memory: {ratio.median():.2f} in the median of {len(found)} runs, "
        f"{ratio.min():.2f} to {ratio.max():.2f}."
    )
    if found["predicted_bytes"].max() < SMALL_PEAK:
        said += " Peaks are this small: what was measured is mostly the process itself."
    paths = searched_paths(frame)
    rows = []
    for predicted in sorted(set(found["predicted_bytes"].tolist()))[:MOST_PEAKS]:
        group = found[found["predicted_bytes"] == predicted]
        name = point_name({path: group.iloc[0][path] for path in paths}) + (" …" if len(group) > 1 else "")
        got = float(group["training_bytes"].median())
        sizes = amount("peak_bytes", float(predicted)), amount("peak_bytes", got)
        rows.append((name, str(len(group)), *sizes, f"{got / predicted:.2f}"))
    title = "Peak memory of the packs, the base model included"
    head = ("runs like", "runs", "predicted", "measured", "ratio")
    return Section("memory", "Memory", (said,), (Grid((title,), head, tuple(rows)),))


def _curves(frame: pd.DataFrame, folder: Path | str | None, best: str | None) -> Section | None:
    if folder is None:
        return None
    runs = frame["run"].tolist()[: plots.MOST_CURVES]
    if best is not None and best not in runs:
        runs = [*runs[:-1], best]
    figure = plots.curves_figure(learning_curves(folder, runs), frame, best)
    return None if figure is None else Section("curves", "Learning curves", (), (), (figure,))
