"""What a figure shows, before anything draws it: the page (Plotly) and the paper (matplotlib) draw the same value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_lab.analysis.rendering import Grid

Number = float | int | str | None


@dataclass(frozen=True)
class Axis:
    """One axis. ``categories`` makes it a list of names in this order (drawn first on the left, or on top).

    ``ticks`` are the numbers to be named, where the axis has only a few.
    """

    title: str
    log: bool = False
    categories: tuple[str, ...] | None = None
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points of one name. ``None`` in ``x`` and ``y`` breaks a line.

    ``error`` are (low, high) ends of each point's interval in the direction of the numbers; ``along`` says whether that
    is ``y`` or ``x``. ``colour`` counts the palette; ``None`` is the muted tone of what stands behind. ``values`` are
    those of a heat map's cells, between 0 and 1.
    """

    name: str
    x: tuple[Number, ...]
    y: tuple[Number, ...]
    kind: Literal["line", "points", "bars", "heat"] = "points"
    colour: int | None = 0
    error: tuple[tuple[float, float], ...] | None = None
    along: Literal["x", "y"] = "y"
    texts: tuple[str, ...] = ()
    dashed: bool = False
    symbol: Literal["circle", "x", "diamond", "square", "line"] = "circle"
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure with its title, what it shows in a sentence (also for those who cannot see it), and its table."""

    key: str
    title: str
    says: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    table: Grid

    @property
    def height(self) -> int:
        """Pixels: a line of names needs more than a curve."""
        return 130 + 24 * len(self.y.categories) if self.y.categories else 360


LIGHT = ("#2a6fc9", "#c8501f", "#1c7f55", "#7b4fc0", "#9a6b00", "#b5346e")
DARK = ("#74aef5", "#f28f63", "#56c596", "#bb9bf0", "#dfb24a", "#f087b5")
"""Hues in the same order for both grounds; at least 4.5 : 1 on them."""
MOST_TICKS = 10
"""Values of an axis that are all named on it."""


def named_ticks(values: Sequence[Any]) -> tuple[float, ...]:
    """The ``ticks`` of an axis with these numbers: all, where they are few."""
    return tuple(float(v) for v in values) if len(values) <= MOST_TICKS else ()


def plotly(figure: Figure) -> dict[str, Any]:
    """``{data, layout}`` for Plotly. Colours are names (``@0``, ``@muted``, ``@ink``) which the page resolves."""
    data = [_trace(series) for series in figure.series]
    named = sum(bool(series.name) for series in figure.series) > 1
    layout = {
        "height": figure.height,
        "margin": {"l": 64, "r": 16, "t": 12, "b": 56},
        "showlegend": named,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "bargap": 0.35,
        "barmode": "group",
        "paper_bgcolor": "@ground",
        "plot_bgcolor": "@ground",
        "font": {"color": "@ink", "size": 13, "family": "system-ui, sans-serif"},
        "hoverlabel": {"bgcolor": "@ground", "font": {"color": "@ink"}},
        "xaxis": _axis(figure.x, upright=False),
        "yaxis": _axis(figure.y, upright=True),
    }
    return {"data": data, "layout": layout}


def _axis(axis: Axis, upright: bool) -> dict[str, Any]:
    out: dict[str, Any] = {
        "title": {"text": axis.title},
        "gridcolor": "@grid",
        "linecolor": "@grid",
        "zeroline": False,
        "automargin": True,
    }
    if axis.categories is not None:
        out |= {"type": "category", "categoryorder": "array", "categoryarray": list(axis.categories)}
        if upright:
            out |= {"autorange": "reversed", "showgrid": False}
    elif axis.log:
        out |= {"type": "log", "exponentformat": "power"}
    if axis.ticks:
        out |= {"tickmode": "array", "tickvals": list(axis.ticks), "ticktext": [f"{tick:g}" for tick in axis.ticks]}
    return out


def _trace(series: Series) -> dict[str, Any]:
    colour = "@muted" if series.colour is None else f"@{series.colour % len(LIGHT)}"
    out: dict[str, Any] = {
        "name": series.name,
        "x": list(series.x),
        "y": list(series.y),
        "showlegend": bool(series.name),
        "hovertemplate": "%{text}<extra></extra>" if series.texts else f"%{{x}}<br>%{{y}}<extra>{series.name}</extra>",
    }
    if series.texts:
        out["text"] = list(series.texts)
        if series.kind == "bars":
            out["textposition"] = "none"
    if series.kind == "heat":
        out |= {"type": "heatmap", "z": list(series.values), "zmin": 0, "zmax": 1, "colorscale": "Viridis"}
    elif series.kind == "bars":
        out |= {"type": "bar", "orientation": "h" if series.along == "x" else "v", "marker": {"color": colour}}
    else:
        behind = series.colour is None
        out |= {
            "type": "scatter",
            "mode": "lines" if series.symbol == "line" else ("lines+markers" if series.kind == "line" else "markers"),
            "line": {"color": colour, "width": 1 if behind else 2, "dash": "dash" if series.dashed else "solid"},
            "marker": {"color": colour, "size": 6 if behind else 8, "symbol": series.symbol.replace("line", "circle")},
            "connectgaps": False,
        }
    if series.error is not None:
        numbers = series.x if series.along == "x" else series.y
        plus = [high - _real(at) for (_, high), at in zip(series.error, numbers, strict=True)]
        minus = [_real(at) - low for (low, _), at in zip(series.error, numbers, strict=True)]
        bar = {
            "type": "data",
            "symmetric": False,
            "array": plus,
            "arrayminus": minus,
            "color": "@ink",
            "thickness": 1.2,
        }
        out[f"error_{series.along}"] = bar | {"width": 3}
    return out


def _real(value: Number) -> float:
    return float(value) if value is not None else 0.0
