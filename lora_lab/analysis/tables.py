"""Ablation tables as blogs print them: rows by columns, mean ± std over seeds, the best in bold."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from lora_lab.analysis.grouping import (
    Configuration,
    axis_values,
    best_of,
    check_path,
    configurations,
    mean_of,
    objective_of,
    ranked,
    repeats_of,
    searched_paths,
)
from lora_lab.analysis.naming import OUTCOME_WORDS, path_name, value_name
from lora_lab.analysis.rendering import Grid, digits_for

if TYPE_CHECKING:
    from rich.table import Table

MOST_COLUMNS = 8
"""More values than this go down the page, not across it."""


@dataclass(frozen=True)
class Cell:
    """One configuration, or several averaged, in a table.

    ``mean`` and ``std`` (ddof = 1) are NaN where they are not known; ``n`` completed runs of ``planned``; ``failures``
    counts the runs of every other outcome.
    """

    mean: float = math.nan
    std: float = math.nan
    n: int = 0
    planned: int = 0
    failures: tuple[tuple[str, int], ...] = ()

    def text(self, digits: int) -> str:
        """``1.234 ± 0.005``; what is incomplete says so: ``1.234 (n=1, 1 diverged)``, ``diverged``, ``–``."""
        failed = [f"{count} {OUTCOME_WORDS[outcome]}" for outcome, count in self.failures]
        if not self.n:
            if len(failed) == 1:
                return failed[0].split(" ", 1)[1]
            return ", ".join(failed) or "–"
        number = f"{self.mean:.{digits}f}"
        if math.isfinite(self.std):
            number += f" ± {self.std:.{digits}f}"
        notes = ([f"n={self.n}"] if self.n < self.planned else []) + failed
        return f"{number} ({', '.join(notes)})" if notes else number


@dataclass(frozen=True)
class AblationTable:
    """A table of one metric; make one with :func:`ablation_table`.

    ``row_paths`` head the leading columns, ``rows`` holds their values a row; ``column_path`` heads the cell columns
    ``columns``, or is ``None`` for the single column of a list. ``cells[i][j]`` belongs to row ``i``, column
    ``j``; ``best`` is its ``(i, j)``. ``base`` is the untrained base model's score a column. ``averaged`` names the
    searched paths that vary within a cell.
    """

    metric: str
    direction: str
    row_paths: tuple[str, ...]
    column_path: str | None
    rows: tuple[tuple[Any, ...], ...]
    columns: tuple[Any, ...]
    cells: tuple[tuple[Cell, ...], ...]
    best: tuple[int, int] | None
    base: tuple[float | None, ...] | None
    averaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def digits(self) -> int:
        """Decimals of every number: two significant digits of the typical std, three where there is none."""
        cells = [cell for row in self.cells for cell in row if cell.n]
        stds = sorted(cell.std for cell in cells if math.isfinite(cell.std) and cell.std > 0)
        largest = max((abs(cell.mean) for cell in cells), default=0.0)
        return digits_for(stds[len(stds) // 2] if stds else math.nan, largest)

    @property
    def title(self) -> tuple[str, ...]:
        """``eval_loss (lower is better)`` and ``mean ± std over 2 seeds``."""
        most = max((cell.n for row in self.cells for cell in row), default=0)
        better = "lower" if self.direction == "minimize" else "higher"
        over = [f"mean ± std over {most} {'runs' if self.averaged else 'seeds'}"] if most > 1 else []
        return (f"{self.metric} ({better} is better)", *over)

    @property
    def paths(self) -> tuple[str, ...]:
        """All config paths on the axes."""
        return (*self.row_paths, *([self.column_path] if self.column_path else []))

    @property
    def grid(self) -> Grid:
        """The texts of the table, as every rendering takes them."""
        labels = max(1, len(self.row_paths))
        names = [path_name(path, self.paths) for path in self.row_paths] or ["configuration"]
        columns = [self.metric]
        if self.column_path is not None:
            names[-1] += f" ↓  {path_name(self.column_path, self.paths)} →"
            columns = [value_name(value) for value in self.columns]
        rows = [
            (*([value_name(value) for value in row] or ["the base settings"]), *(c.text(self.digits) for c in cells))
            for row, cells in zip(self.rows, self.cells, strict=True)
        ]
        footer = None
        if self.base is not None:
            scores = ("–" if score is None else f"{score:.{self.digits}f}" for score in self.base)
            footer = ("base model", *[""] * (labels - 1), *scores)
        averaged = (f"averaged over {', '.join(self.averaged)}",) if self.averaged else ()
        return Grid(
            title=self.title,
            head=(*names, *columns),
            rows=tuple(rows),
            labels=labels,
            best=None if self.best is None else (self.best[0], self.best[1] + labels),
            footer=footer,
            notes=(*averaged, *self.notes),
        )

    def rich(self, width: int | None = None) -> Table:
        """For a terminal: the best in bold. Where ``width`` columns do not hold it, ``±`` goes to a second line."""
        return self.grid.rich(width)

    def plain(self) -> str:
        """Aligned text for a pipe; the best is marked with ``*``."""
        return self.grid.plain()

    def markdown(self) -> str:
        """A Markdown table with its title and notes; the best in bold."""
        return self.grid.markdown()

    def csv(self) -> str:
        """One line a cell: its values at the axes, ``mean std n planned``, other outcomes, the base model's score."""
        out = io.StringIO()
        measures = ("mean", "std", "n", "planned", "best", "base")
        writer = csv.DictWriter(out, [*self.paths, "metric", *measures, "outcomes"], lineterminator="\n")
        writer.writeheader()
        for record in self.records():
            point = {path: value_name(value) for path, value in record["point"].items()}
            outcomes = "; ".join(f"{count} {outcome}" for outcome, count in record["outcomes"].items())
            rest = {name: record[name] for name in measures}
            writer.writerow({**point, "metric": self.metric, **rest, "outcomes": outcomes})
        return out.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """One record a cell: ``point mean std n planned outcomes best base``; what is not known is ``None``."""
        found: list[dict[str, Any]] = []
        for i, (row, cells) in enumerate(zip(self.rows, self.cells, strict=True)):
            for j, (value, cell) in enumerate(zip(self.columns, cells, strict=True)):
                point = dict(zip(self.row_paths, row, strict=True))
                if self.column_path is not None:
                    point[self.column_path] = value
                found.append(
                    {
                        "point": point,
                        "mean": cell.mean if math.isfinite(cell.mean) else None,
                        "std": cell.std if math.isfinite(cell.std) else None,
                        "n": cell.n,
                        "planned": cell.planned,
                        "outcomes": dict(cell.failures),
                        "best": (i, j) == self.best,
                        "base": None if self.base is None else self.base[j],
                    }
                )
        return found

    def to_tree(self) -> dict[str, Any]:
        """For JSON: the cells with what :meth:`csv` says of them."""
        return {
            "metric": self.metric,
            "direction": self.direction,
            "row_paths": list(self.row_paths),
            "column_path": self.column_path,
            "cells": self.records(),
            "averaged": list(self.averaged),
            "notes": list(self.notes),
        }


def ablation_table(
    frame: pd.DataFrame,
    rows: str | None = None,
    columns: str | None = None,
    metric: str | None = None,
    direction: str | None = None,
    *,
    top: int = 20,
) -> AblationTable:
    """The ablation table of a results frame (see :func:`~lora_lab.analysis.load_results`).

    Without axes, the sweep decides: one searched path gives one column; two (or the two that vary, of more) give rows
    by columns; three or more that vary, or axes with many values and few runs, give a list of the ``top``
    configurations, best first. With axes named, runs that agree on them are averaged over everything else, which
    a note says. Metric and direction are the sweep's objective unless given.

    Raises:
        SpecError: an unknown metric or direction, or an axis that was not searched.
    """
    metric, direction = objective_of(frame, metric, direction)
    paths = searched_paths(frame)
    if rows is None and columns is not None:
        rows = next((path for path in paths if path != columns), None)
    if rows is not None:
        for path in (rows, columns):
            if path is not None:
                check_path(frame, path)
        return _matrix(frame, rows, columns if columns != rows else None, metric, direction)
    axes = _axes(frame, paths)
    if axes is not None:
        return _matrix(frame, *axes, metric, direction)
    return _list(frame, paths, metric, direction, top)


def _axes(frame: pd.DataFrame, paths: Sequence[str]) -> tuple[str, str | None] | None:
    """Rows and columns that suit the sweep; ``None`` where a list does."""
    values = {path: axis_values(frame, path) for path in paths}
    varying = [path for path in paths if len(values[path]) > 1] or list(paths[:1])
    if len(varying) == 1 and len(values[varying[0]]) <= 20:
        return varying[0], None
    if len(varying) != 2:
        return None
    rows, columns = varying
    if len(values[columns]) > MOST_COLUMNS:
        rows, columns = columns, rows
    if len(values[columns]) > MOST_COLUMNS:
        return None
    points = frame[[rows, columns]].astype(str).drop_duplicates()
    size = len(values[rows]) * len(values[columns])
    planned = frame.attrs.get("sweep", {}).get("sampler") == "grid"
    return (rows, columns) if planned or 2 * len(points) > size else None


def _matrix(frame: pd.DataFrame, rows: str, columns: str | None, metric: str, direction: str) -> AblationTable:
    axes = [rows] if columns is None else [rows, columns]
    found = {tuple(value for _, value in c.point): c for c in configurations(frame, metric, axes)}
    row_values = axis_values(frame, rows)
    column_values = [None] if columns is None else axis_values(frame, columns)
    hidden = [path for path in searched_paths(frame) if path not in axes and len(axis_values(frame, path)) > 1]
    repeats = repeats_of(frame)
    planned = max((c.settled for c in found.values()), default=0) if hidden or "seed" in axes else repeats
    cells = [
        [_cell(found.get((row,) if columns is None else (row, column)), planned) for column in column_values]
        for row in row_values
    ]
    best = best_of(list(found.values()), direction, planned)
    place = None
    if best is not None:
        at = [value for _, value in best.point]
        place = (row_values.index(at[0]), 0 if columns is None else column_values.index(at[1]))
    base, base_note = _base([[c for p, c in found.items() if columns is None or p[1] == v] for v in column_values])
    return AblationTable(
        metric=metric,
        direction=direction,
        row_paths=(rows,),
        column_path=columns,
        rows=tuple((row,) for row in row_values),
        columns=(metric,) if columns is None else tuple(column_values),
        cells=tuple(tuple(row) for row in cells),
        best=place,
        base=base,
        averaged=tuple(hidden),
        notes=base_note,
    )


def _list(frame: pd.DataFrame, paths: Sequence[str], metric: str, direction: str, top: int) -> AblationTable:
    found = configurations(frame, metric)
    repeats = repeats_of(frame)
    best = best_of(found, direction, repeats)
    shown = ranked(found, direction, repeats)[:top]
    base, base_note = _base([found])
    left = [f"the best {len(shown)} of {len(found)} configurations"] if len(shown) < len(found) else []
    return AblationTable(
        metric=metric,
        direction=direction,
        row_paths=tuple(paths),
        column_path=None,
        rows=tuple(tuple(value for _, value in c.point) for c in shown),
        columns=(metric,),
        cells=tuple((_cell(c, repeats),) for c in shown),
        best=None if best is None else (shown.index(best), 0),
        base=base,
        notes=(*left, *base_note),
    )


def _cell(configuration: Configuration | None, planned: int) -> Cell:
    if configuration is None:
        return Cell(planned=planned)
    return Cell(configuration.mean, configuration.std, configuration.n, planned, configuration.failures)


def _base(columns: Sequence[Sequence[Configuration]]) -> tuple[tuple[float | None, ...] | None, tuple[str, ...]]:
    """The base model's score a column, and a note where it is not one number within a column (searched data, say)."""
    scores = [[c.base for c in column if c.base is not None] for column in columns]
    if not any(scores):
        return None, ()
    means = tuple(mean_of(column) if column else None for column in scores)
    moved = any(column and max(column) - min(column) > 1e-3 * abs(max(column)) for column in scores)
    return means, (("the base model's score depends on the rows: its mean is shown",) if moved else ())
