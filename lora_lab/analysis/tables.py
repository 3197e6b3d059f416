"""Ablation tables as blogs print them: rows by columns, mean ± std over seeds, the best in bold."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_lab.analysis.intervals import LEVEL, Difference
from lora_lab.analysis.naming import OUTCOME_WORDS, path_name, value_name
from lora_lab.analysis.rendering import Grid, digits_for

if TYPE_CHECKING:
    from rich.table import Table

BETTER, WORSE = "▲", "▼"
"""Marks of a cell that differs from the baseline by more than seeds explain."""

EXTRA_HEADS = {
    "trainable_parameters": "parameters",
    "lane_bytes": "memory",
    "peak_bytes": "peak memory",
    "seconds": "time",
}


@dataclass(frozen=True)
class Cell:
    """One configuration, or several averaged, in a table.

    ``mean`` and ``std`` (ddof = 1) are NaN where they are not known, as is ``half``, half the 95 % interval of the
    mean; ``n`` completed runs of ``planned``; ``failures`` counts the runs of every other outcome; ``difference`` is
    the test against the table's baseline.
    """

    mean: float = math.nan
    std: float = math.nan
    n: int = 0
    planned: int = 0
    failures: tuple[tuple[str, int], ...] = ()
    half: float = math.nan
    difference: Difference | None = None

    def text(self, digits: int, spread: str = "std") -> str:
        """``1.234 ± 0.005``; what is incomplete says so: ``1.234 (n=1, 1 diverged)``, ``diverged``, ``–``."""
        failed = [f"{count} {OUTCOME_WORDS[outcome]}" for outcome, count in self.failures]
        if not self.n:
            if len(failed) == 1:
                return failed[0].split(" ", 1)[1]
            return ", ".join(failed) or "–"
        number = f"{self.mean:.{digits}f}"
        around = self.half if spread == "ci" else self.std
        if math.isfinite(around):
            number += f" ± {around:.{digits}f}"
        notes = ([f"n={self.n}"] if self.n < self.planned else []) + failed
        return f"{number} ({', '.join(notes)})" if notes else number

    def mark(self, direction: str) -> str:
        """``▲`` or ``▼`` where the cell is better or worse than the baseline, after Holm's correction; else nothing."""
        if self.difference is None or not self.difference.holm < LEVEL:
            return ""
        return BETTER if (self.difference.mean < 0) == (direction == "minimize") else WORSE


@dataclass(frozen=True)
class Extra:
    """A column beside the cells: the mean of another metric a row, ``None`` where no run completed."""

    metric: str
    values: tuple[float | None, ...]

    @property
    def head(self) -> str:
        """``parameters``, ``memory``, ``time``, or the metric's own name."""
        return EXTRA_HEADS.get(self.metric, self.metric)

    @property
    def texts(self) -> tuple[str, ...]:
        """The values with their units."""
        return tuple("–" if value is None else amount(self.metric, value) for value in self.values)


@dataclass(frozen=True)
class AblationTable:
    """A table of one metric; make one with :func:`ablation_table`.

    ``row_paths`` head the leading columns, ``rows`` holds their values a row; ``column_path`` heads the cell columns
    ``columns``, or is ``None`` for the single column of a list. ``cells[i][j]`` belongs to row ``i``, column
    ``j``; ``best`` is its ``(i, j)``. ``base`` is the untrained base model's score a column. ``averaged`` names the
    searched paths that vary within a cell. ``spread`` is what stands behind ``±``; ``baseline`` the cell that the
    others were tested against; ``extras`` are columns beside the cells.
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
    spread: str = "std"
    baseline: tuple[int, int] | None = None
    extras: tuple[Extra, ...] = ()

    @property
    def digits(self) -> int:
        """Decimals of every number: two significant digits of the typical std, three where there is none."""
        cells = [cell for row in self.cells for cell in row if cell.n]
        stds = sorted(cell.std for cell in cells if math.isfinite(cell.std) and cell.std > 0)
        largest = max((abs(cell.mean) for cell in cells), default=0.0)
        return digits_for(stds[len(stds) // 2] if stds else math.nan, largest)

    @property
    def title(self) -> tuple[str, ...]:
        """``eval_loss (lower is better)`` and ``mean ± std over 2 seeds`` (or ``± 95 % CI``)."""
        most = max((cell.n for row in self.cells for cell in row), default=0)
        better = "lower" if self.direction == "minimize" else "higher"
        around = "95 % CI" if self.spread == "ci" else "std"
        over = [f"mean ± {around} over {most} {'runs' if self.averaged else 'seeds'}"] if most > 1 else []
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
            (
                *([value_name(value) for value in row] or ["the base settings"]),
                *(self._text(cell) for cell in cells),
                *(extra.texts[i] for extra in self.extras),
            )
            for i, (row, cells) in enumerate(zip(self.rows, self.cells, strict=True))
        ]
        footer = None
        if self.base is not None:
            scores = ("–" if score is None else f"{score:.{self.digits}f}" for score in self.base)
            footer = ("base model", *[""] * (labels - 1), *scores, *[""] * len(self.extras))
        averaged = (f"averaged over {', '.join(self.averaged)}",) if self.averaged else ()
        return Grid(
            title=self.title,
            head=(*names, *columns, *(extra.head for extra in self.extras)),
            rows=tuple(rows),
            labels=labels,
            best=None if self.best is None else (self.best[0], self.best[1] + labels),
            footer=footer,
            notes=(*averaged, *self.notes),
        )

    def _text(self, cell: Cell) -> str:
        mark = cell.mark(self.direction)
        return cell.text(self.digits, self.spread) + (f" {mark}" if mark else "")

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
        """One line a cell: its values at the axes, and what :meth:`records` says of it."""
        out = io.StringIO()
        measures = ("mean", "std", "ci", "n", "planned", "best", "base", "difference", "holm_p")
        writer = csv.DictWriter(out, [*self.paths, "metric", *measures, "outcomes"], lineterminator="\n")
        writer.writeheader()
        for record in self.records():
            point = {path: value_name(value) for path, value in record["point"].items()}
            outcomes = "; ".join(f"{count} {outcome}" for outcome, count in record["outcomes"].items())
            rest = {name: record[name] for name in measures}
            writer.writerow({**point, "metric": self.metric, **rest, "outcomes": outcomes})
        return out.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """One record a cell: ``point mean std ci n planned outcomes best base difference holm_p``, or ``None``."""
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
                        "ci": cell.half if math.isfinite(cell.half) else None,
                        "n": cell.n,
                        "planned": cell.planned,
                        "outcomes": dict(cell.failures),
                        "best": (i, j) == self.best,
                        "base": None if self.base is None else self.base[j],
                        "difference": None if cell.difference is None else cell.difference.mean,
                        "holm_p": None if cell.difference is None else cell.difference.holm,
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
            "baseline": None if self.baseline is None else list(self.baseline),
            "extras": {extra.metric: list(extra.values) for extra in self.extras},
            "notes": list(self.notes),
        }


def amount(metric: str, value: float) -> str:
    """A number with the unit of its metric: ``460,800``, ``5.5 MB``, ``1.2 GB``, ``12.3 s``, ``1.234``."""
    if metric.endswith("_bytes"):
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
    if metric == "seconds":
        return f"{value:.1f} s" if value < 600 else f"{value / 60:.0f} min"
    if metric.endswith("_parameters") or metric in ("tokens", "steps"):
        return f"{value:,.0f}"
    return f"{value:.4g}"
