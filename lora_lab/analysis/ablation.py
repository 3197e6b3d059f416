"""Which configurations go into which cell of an ablation table, and what each is compared with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from lora_lab.analysis.grouping import (
    Configuration,
    axis_values,
    best_of,
    check_metric,
    check_path,
    configurations,
    mean_of,
    objective_of,
    plain_value,
    ranked,
    repeats_of,
    searched_paths,
)
from lora_lab.analysis.intervals import Noise, blocks_table, noise_of, paired_differences
from lora_lab.analysis.naming import point_name, value_name
from lora_lab.analysis.tables import AblationTable, Cell, Extra
from lora_lab.errors import SpecError, nearest

MOST_COLUMNS = 8
"""More values than this go down the page, not across it."""

EXTRAS = ("trainable_parameters", "lane_bytes", "seconds")
"""What a blog puts beside the score: parameters, memory and time."""


def ablation_table(
    frame: pd.DataFrame,
    rows: str | Sequence[str] | None = None,
    columns: str | None = None,
    metric: str | None = None,
    direction: str | None = None,
    *,
    top: int = 20,
    spread: str = "std",
    baseline: Mapping[str, Any] | None = None,
    extras: Sequence[str] = (),
) -> AblationTable:
    """The ablation table of a results frame (see :func:`~lora_lab.analysis.load_results`).

    Without axes, the sweep decides: one searched path gives one column; two (or the two that vary, of more) give rows
    by columns; three or more that vary, or axes with many values and few runs, give a list of the ``top``
    configurations, best first. With axes named (several of ``rows`` make one row a combination), runs that agree on
    them are averaged over everything else, which a note says. Metric and direction are the sweep's objective unless
    given.

    ``spread`` is what stands behind ``±``: ``std`` over the runs of a cell, or ``ci``, half the 95 % interval of its
    mean over seeds (Student's t with the spread pooled over all configurations, what a table hides counted as fixed).
    ``baseline`` names a cell by the values of its axes; every other is tested against it
    (:func:`~lora_lab.analysis.intervals.paired_differences`). ``extras`` are metrics to stand beside each row,
    averaged.

    Raises:
        SpecError: an unknown metric or direction, an axis that was not searched, or a baseline that is no cell.
    """
    metric, direction = objective_of(frame, metric, direction)
    if spread not in ("std", "ci"):
        raise SpecError(f"spread: {spread!r} is not one of std, ci.")
    for name in extras:
        check_metric(frame, name)
    paths = searched_paths(frame)
    wanted = [rows] if isinstance(rows, str) else list(rows or ())
    if not wanted and columns is not None:
        wanted = [path for path in paths if path != columns][:1]
    if wanted:
        for path in (*wanted, *([columns] if columns else [])):
            check_path(frame, path)
        table = _matrix(frame, wanted, columns if columns not in wanted else None, metric, direction)
    elif (axes := _axes(frame, paths)) is not None:
        table = _matrix(frame, [axes[0]], axes[1], metric, direction)
    else:
        table = _list(frame, paths, metric, direction, top)
    noise = noise_of([c.values for c in configurations(frame.drop_duplicates("key"), metric)])
    table = replace(table, spread=spread, cells=_with_intervals(table, noise))
    if baseline is not None:
        table = _compared(frame, table, baseline)
    return replace(table, extras=tuple(_extra(frame, table, name) for name in extras)) if extras else table


def _with_intervals(table: AblationTable, noise: Noise | None) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        tuple(replace(cell, half=noise.half_width(cell.n) if noise and cell.n else math.nan) for cell in row)
        for row in table.cells
    )


def _compared(frame: pd.DataFrame, table: AblationTable, baseline: Mapping[str, Any]) -> AblationTable:
    """The table with every cell tested against the baseline's."""
    points = [(*row, *([value] if table.column_path else [])) for row in table.rows for value in table.columns]
    place = _place(points, table.paths, baseline)
    hidden = [path for path in (*searched_paths(frame), "seed") if path not in table.paths]
    blocks = blocks_table(frame, table.metric, table.paths, hidden)
    keys = [tuple(map(_cell_key, point)) for point in points]
    several = len(table.paths) > 1  # else a tuple is one value: a mask, ranks by group
    blocks.index = pd.Index(
        [tuple(map(_cell_key, key if several else (key,))) for key in blocks.index], tupleize_cols=False
    )
    places = {key: i for i, key in enumerate(blocks.index)}
    present = [key for key in keys if key in places]
    if keys[place] not in present:
        raise SpecError(f"baseline: {_said(table.paths, points[place])} has no completed run.")
    tests = paired_differences(blocks.iloc[[places[key] for key in present]], present.index(keys[place]))
    found = dict(zip(present, tests, strict=True))
    width = len(table.columns)
    cells = tuple(
        tuple(replace(cell, difference=found.get(keys[i * width + j])) for j, cell in enumerate(row))
        for i, row in enumerate(table.cells)
    )
    shown = _said(table.paths, points[place])
    pooled = all(test.pooled for test in tests if test is not None)
    how = "spread pooled over the table" if pooled else "each pair's own spread, for runs are missing"
    over = "seeds" if hidden == ["seed"] else "seeds and other settings"
    note = f"▲ better, ▼ worse than the baseline {shown} (paired over {over}, {how}; Holm-corrected p < 0.05)"
    return replace(table, cells=cells, baseline=divmod(place, width), notes=(*table.notes, note))


def _place(points: Sequence[tuple[Any, ...]], paths: Sequence[str], baseline: Mapping[str, Any]) -> int:
    names = {path: path for path in paths} | {path.rpartition(".")[2]: path for path in paths}
    for name in baseline:
        if name not in names:
            raise SpecError(
                f"baseline: {name!r} is no axis of the table{nearest(name, paths)} Axes: {', '.join(paths)}."
            )
    wanted = {names[name]: value_name(_tupled(value)) for name, value in baseline.items()}
    matches = [
        i
        for i, point in enumerate(points)
        if all(
            value_name(value) == wanted.get(path, value_name(value)) for path, value in zip(paths, point, strict=True)
        )
    ]
    if len(matches) != 1:
        said = ", ".join(f"{path}={value}" for path, value in wanted.items())
        raise SpecError(
            f"baseline: {said} is {'no cell' if not matches else f'{len(matches)} cells'} of the table. "
            f"Give one value for each of {', '.join(paths)}, as in {_said(paths, points[0])}."
        )
    return matches[0]


def _said(paths: Sequence[str], point: Sequence[Any]) -> str:
    return point_name(dict(zip(paths, point, strict=True)))


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _cell_key(value: Any) -> Any:
    value = plain_value(value)
    return "null" if value is None else value


def _extra(frame: pd.DataFrame, table: AblationTable, name: str) -> Extra:
    """The mean of a metric for each row of the table, with its range where it is not one number."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for c in configurations(frame, name, list(table.row_paths)):
        found[tuple(value for _, value in c.point)] = list(c.values)
    means = [mean_of(values) if (values := found.get(tuple(row))) else None for row in table.rows]
    return Extra(name, tuple(means))


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


def _matrix(
    frame: pd.DataFrame, rows: Sequence[str], columns: str | None, metric: str, direction: str
) -> AblationTable:
    axes = [*rows, *([] if columns is None else [columns])]
    found = {tuple(value for _, value in c.point): c for c in configurations(frame, metric, axes)}
    row_values = [(value,) for value in axis_values(frame, rows[0])]
    if len(rows) > 1:
        seen = {point[: len(rows)] for point in found}
        row_values = [row for row in itertools.product(*[axis_values(frame, path) for path in rows]) if row in seen]
    column_values = [None] if columns is None else axis_values(frame, columns)
    hidden = [path for path in searched_paths(frame) if path not in axes and len(axis_values(frame, path)) > 1]
    repeats = repeats_of(frame)
    planned = max((c.settled for c in found.values()), default=0) if hidden or "seed" in axes else repeats
    cells = [
        [_cell(found.get(row if columns is None else (*row, column)), planned) for column in column_values]
        for row in row_values
    ]
    best = best_of(list(found.values()), direction, planned)
    place = None
    if best is not None:
        at = tuple(value for _, value in best.point)
        place = (row_values.index(at[: len(rows)]), 0 if columns is None else column_values.index(at[-1]))
    base, base_note = _base([[c for p, c in found.items() if columns is None or p[-1] == v] for v in column_values])
    return AblationTable(
        metric=metric,
        direction=direction,
        row_paths=tuple(rows),
        column_path=columns,
        rows=tuple(row_values),
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
