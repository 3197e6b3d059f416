"""Figures for papers: PNG and SVG by matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_lab.analysis.figure import LIGHT, Axis, Figure, Series
from lora_lab.files import folder_errors

MARKERS = {"circle": "o", "x": "x", "diamond": "D", "square": "s", "line": ""}
MUTED = "#b4b9c1"
DPI = 200
WIDTH = 6.0
"""Inches; a text column and a half."""


def draw(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Write ``<key>.png`` and ``<key>.svg`` of each figure into ``folder``; the paths.

    Raises:
        SweepFolderError: the folder cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "lora-lab",
    }
    written = []
    with folder_errors(folder), mpl.rc_context(style):
        folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            sheet = Sheet(figsize=(WIDTH, max(3.2, figure.height / 96)), layout="constrained")
            FigureCanvasAgg(sheet)
            _plot(sheet.add_subplot(), figure)
            for kind in ("png", "svg"):
                path = folder / f"{figure.key}.{kind}"
                date = {"Date": None} if kind == "svg" else {}
                sheet.savefig(path, dpi=DPI, metadata=date)
                written.append(path)
    return written


def _plot(axes: Any, figure: Figure) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_title(figure.title, loc="left", fontsize=10)
    bars = [series for series in figure.series if series.kind == "bars"]
    for series in figure.series:
        x, y = _places(series.x, figure.x), _places(series.y, figure.y)
        if series.kind == "bars":
            _bars(axes, series, x, y, bars.index(series), len(bars))
            continue
        colour = MUTED if series.colour is None else LIGHT[series.colour % len(LIGHT)]
        line = ("--" if series.dashed else "-") if series.kind == "line" or series.symbol == "line" else ""
        width = 0.6 if series.colour is None else 1.5
        axes.plot(
            [_nan(v) for v in x],
            [_nan(v) for v in y],
            linestyle=line,
            marker=MARKERS[series.symbol],
            markersize=4,
            linewidth=width,
            color=colour,
            label=series.name or None,
        )
        _whiskers(axes, series, x, y)
    for axis, name in ((figure.x, "x"), (figure.y, "y")):
        getattr(axes, f"set_{name}label")(axis.title)
        if axis.categories is not None:
            places = range(len(axis.categories))
            getattr(axes, f"set_{name}ticks")(places, axis.categories)
            if name == "y":
                axes.invert_yaxis()
        elif axis.log:
            getattr(axes, f"set_{name}scale")("log")
        if axis.ticks:
            getattr(axes, f"set_{name}ticks")(axis.ticks, [f"{tick:g}" for tick in axis.ticks])
            getattr(axes, f"{name}axis").set_minor_locator(NullLocator())
    axes.grid(color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    if sum(bool(series.name) for series in figure.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _bars(axes: Any, series: Series, x: list[Any], y: list[Any], place: int, among: int) -> None:
    size = 0.7 / among
    shift = (place - (among - 1) / 2) * size
    colour = MUTED if series.colour is None else LIGHT[series.colour % len(LIGHT)]
    if series.along == "x":
        y = [at + shift for at in y]
        axes.barh(y, x, height=size, color=colour, label=series.name or None)
    else:
        x = [at + shift for at in x]
        axes.bar(x, y, width=size, color=colour, label=series.name or None)
    _whiskers(axes, series, x, y)


def _whiskers(axes: Any, series: Series, x: list[Any], y: list[Any]) -> None:
    if series.error is None:
        return
    numbers = x if series.along == "x" else y
    ends = [
        [max(at - low, 0.0) for at, (low, _) in zip(numbers, series.error, strict=True)],
        [max(high - at, 0.0) for at, (_, high) in zip(numbers, series.error, strict=True)],
    ]
    axes.errorbar(x, y, fmt="none", ecolor="#3a3f47", elinewidth=1, capsize=2, **{f"{series.along}err": ends})


def _places(values: tuple[Any, ...], axis: Axis) -> list[Any]:
    if axis.categories is None:
        return list(values)
    place = {name: i for i, name in enumerate(axis.categories)}
    return [None if value is None else place[str(value)] for value in values]


def _nan(value: Any) -> float:
    return float("nan") if value is None else float(value)
