"""The figures of runs and configurations: their losses, seeds, costs and learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from lora_lab.analysis.curves import curve_table
from lora_lab.analysis.figure import LIGHT, Axis, Figure, Series, named_ticks
from lora_lab.analysis.grouping import Configuration
from lora_lab.analysis.naming import OUTCOME_WORDS, path_name, value_name
from lora_lab.analysis.reliability import Consistency
from lora_lab.analysis.rendering import Grid, digits_for
from lora_lab.analysis.stability import Stability
from lora_lab.analysis.tables import AblationTable, amount

MOST_CURVES = 1000
"""Runs whose learning curves are drawn."""
MOST_POINTS = 40_000
"""Points of all learning curves together; longer runs are thinned."""
LONGEST_NAME = 36
"""Characters of a configuration's name beside a plot."""
MOST_FRONT = 1000
"""Configurations behind the Pareto fronts."""
SYMBOLS: Final = ("circle", "diamond", "square", "x")


def ablation_figure(table: AblationTable) -> Figure | None:
    """The table's cells with their intervals, one line a column; ``None`` for a list of configurations."""
    if len(table.row_paths) != 1 or len(table.rows) < 2:
        return None
    numbers = [row[0] for row in table.rows]
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in numbers)
    log = numeric and min(numbers) > 0 and max(numbers) / min(numbers) > 4
    names = tuple(value_name(v) for v in numbers)
    series = []
    for j, column in enumerate(table.columns):
        shown = [(i, row[j]) for i, row in enumerate(table.cells) if row[j].n]
        if not shown:
            continue
        halves = [cell.half if math.isfinite(cell.half) else 0.0 for _, cell in shown]
        series.append(
            Series(
                f"{path_name(table.column_path)}={value_name(column)}" if table.column_path else "",
                tuple(numbers[i] if numeric else names[i] for i, _ in shown),
                tuple(cell.mean for _, cell in shown),
                kind="line" if numeric else "points",
                colour=j,
                symbol=SYMBOLS[j % len(SYMBOLS)],
                dashed=j >= len(LIGHT),
                error=tuple((c.mean - h, c.mean + h) for (_, c), h in zip(shown, halves, strict=True)),
            )
        )
    if not series:
        return None
    path = table.row_paths[0]
    axis = Axis(path_name(path), bool(log), None if numeric else names, named_ticks(numbers) if numeric else ())
    says = f"{table.metric} against {path_name(path)}; bars are 95 % intervals over seeds."
    return Figure(
        f"ablation_{path_name(path)}",
        f"{table.metric} by {path_name(path)}",
        says,
        axis,
        Axis(table.metric),
        tuple(series),
        table.grid,
    )


def consistency_figure(steady: Consistency, found: Sequence[Configuration], top: int) -> Figure | None:
    """Every seed of the best configurations, their means and intervals."""
    rows = steady.table.head(top).to_dict("records")
    by_mean = {(c.mean, c.n): c for c in found}
    shown = [(row, by_mean[(row["mean"], row["n"])]) for row in rows if (row["mean"], row["n"]) in by_mean]
    if not shown:
        return None
    names = _short([c.name or "the base settings" for _, c in shown])
    seeds = [(value, name) for (_, c), name in zip(shown, names, strict=True) for value in c.values]
    intervals = [
        (row["low"] if math.isfinite(row["low"]) else c.mean, row["high"] if math.isfinite(row["high"]) else c.mean)
        for row, c in shown
    ]
    series = (
        Series(
            "mean and 95 % CI",
            tuple(c.mean for _, c in shown),
            names,
            error=tuple(intervals),
            along="x",
            symbol="diamond",
        ),
        Series("one seed", tuple(v for v, _ in seeds), tuple(n for _, n in seeds), colour=1, symbol="x"),
    )
    says = f"{steady.metric} of every seed of the best {len(names)} configurations, with mean and interval."
    return Figure(
        "consistency",
        "Seeds of each configuration",
        says,
        Axis(steady.metric),
        Axis("", categories=names),
        series,
        steady.grid(top),
    )


def _short(names: Sequence[str]) -> tuple[str, ...]:
    """Names that leave room for the plot: long ones are numbered and cut; the table has them whole."""
    if max(map(len, names)) <= LONGEST_NAME:
        return tuple(names)
    return tuple(f"{i}. {name[: LONGEST_NAME - 6]}…" for i, name in enumerate(names, 1))


def stability_figure(stability: Sequence[Stability], digits: int) -> Figure | None:
    """The chance that the winner is right, against the number of seeds."""
    if not stability:
        return None
    grid = Grid(
        ("Rank stability",),
        ("seeds", "winner is right", "given up on average"),
        tuple((str(s.seeds), f"{s.right:.2f}", f"{s.regret:.{digits}f}") for s in stability),
    )
    line = Series("", tuple(s.seeds for s in stability), tuple(s.right for s in stability), kind="line")
    first, last = stability[0], stability[-1]
    says = f"The winner is right with p {first.right:.2f} at {first.seeds} seed, {last.right:.2f} at {last.seeds}."
    return Figure(
        "stability",
        "Would more seeds name the same winner?",
        says,
        Axis("seeds a configuration", log=True, ticks=named_ticks([s.seeds for s in stability])),
        Axis("probability"),
        (line,),
        grid,
    )


def pareto_figure(table: pd.DataFrame, metric: str, cost: str, direction: str) -> Figure:
    """Every configuration by metric and cost; the front of these two is joined."""
    from lora_lab.analysis.pareto import on_front

    scale, unit = (1e-6, "MB") if cost.endswith("_bytes") else (1.0, "s") if cost == "seconds" else (1.0, "")
    values = table[[metric, cost]].to_numpy(dtype=float)
    sign = 1.0 if direction == "minimize" else -1.0
    front = table[on_front(values * [sign, 1.0])].sort_values(cost)
    rest = table.drop(front.index).head(MOST_FRONT)
    kind = {"lane_bytes": "memory of the run alone", "peak_bytes": "peak memory", "seconds": "time"}.get(cost, cost)
    series = []
    for name, part, colour in (("other configurations", rest, None), ("front", front, 0)):
        texts = tuple(
            f"{n}<br>{metric} {m:.4g}<br>{amount(cost, c)}"
            for n, m, c in zip(part["name"], part[metric], part[cost], strict=True)
        )
        x = tuple(round(float(v) * scale, 4) for v in part[cost])
        y = tuple(round(float(v), 6) for v in part[metric])
        series.append(Series(name, x, y, kind="points" if colour is None else "line", colour=colour, texts=texts))
    digits = digits_for(
        float(table[metric].std()) / 10 if len(table) > 1 else math.nan, float(table[metric].abs().max())
    )
    rows = tuple(
        (n, f"{m:.{digits}f}", amount(cost, c))
        for n, m, c in zip(front["name"], front[metric], front[cost], strict=True)
    )
    grid = Grid((f"Front of {metric} and {kind}",), ("configuration", metric, kind), rows)
    says = f"{len(front)} of {len(table)} configurations are not beaten in both {metric} and {kind}."
    return Figure(
        f"pareto_{cost}",
        f"{metric} against {kind}",
        says,
        Axis(f"{kind} ({unit})", log=_wide(table[cost])),
        Axis(metric),
        tuple(series),
        grid,
    )


def _wide(values: pd.Series[float]) -> bool:
    return bool(len(values) and values.min() > 0 and values.max() / values.min() > 20)


def curves_figure(curves: pd.DataFrame, frame: pd.DataFrame, best: str | None) -> Figure | None:
    """Held-out loss over steps: all runs behind, the best one before them, those that stopped early marked."""
    evals = curves[(curves["kind"] == "eval") & curves["loss"].notna()]
    table = curve_table(curves, frame)
    if evals.empty:
        return None
    runs = list(dict.fromkeys(evals["run"]))[:MOST_CURVES]
    every = max(1, math.ceil(len(evals) / MOST_POINTS))
    x: list[Any] = []
    y: list[Any] = []
    texts: list[str] = []
    groups = dict(tuple(evals.groupby("run", sort=False)))
    for run in runs:
        group = groups[run].iloc[::-every][::-1]
        x += [*group["step"].tolist(), None]
        y += [*(round(v, 5) for v in group["loss"]), None]
        texts += [*[run] * len(group), ""]
    series = [Series("all runs", tuple(x), tuple(y), colour=None, kind="line", symbol="line", texts=tuple(texts))]
    if best is not None and best in groups:
        group = groups[best]
        series.append(
            Series(f"best run {best}", tuple(group["step"]), tuple(round(v, 5) for v in group["loss"]), kind="line")
        )
        train = curves[(curves["run"] == best) & (curves["kind"] == "train")]
        if len(train):
            series.append(
                Series(
                    "its training loss",
                    tuple(train["step"]),
                    tuple(round(v, 5) for v in train["loss"]),
                    kind="line",
                    colour=2,
                    dashed=True,
                    symbol="line",
                )
            )
    early = table[~table["outcome"].isin(["COMPLETED", "running"]) & table["run"].isin(runs)]
    if len(early):
        marks = tuple(f"{run} {OUTCOME_WORDS.get(o, o)}" for run, o in zip(early["run"], early["outcome"], strict=True))
        series.append(
            Series("stopped early", tuple(early["steps"]), tuple(early["last"]), colour=1, symbol="x", texts=marks)
        )
    shown = table.head(MOST_CURVES)
    grid = Grid(
        ("Held-out loss of every run",),
        ("run", "outcome", "steps", "first", "best", "at step", "last"),
        tuple(
            (
                r["run"],
                OUTCOME_WORDS.get(r["outcome"], r["outcome"]),
                str(r["steps"]),
                f"{r['first']:.4f}",
                f"{r['best']:.4f}",
                str(r["best_step"]),
                f"{r['last']:.4f}",
            )
            for r in shown.to_dict("records")
        ),
        labels=2,
        notes=(f"the first {len(shown)} of {len(table)} runs",) if len(shown) < len(table) else (),
    )
    says = f"Held-out loss of {len(runs)} runs over steps; {len(early)} stopped early."
    return Figure(
        "curves", "Learning curves", says, Axis("optimizer step"), Axis("loss (nats per token)"), tuple(series), grid
    )
