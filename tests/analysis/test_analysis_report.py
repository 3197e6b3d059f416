"""The report as a value, its tables and figures in every rendering, and a page that needs nothing but a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from simulated_sweeps import curves_of, frame_of, large

from lora_lab.analysis import ablation_table, draw, html_page, load_results, report_of
from lora_lab.analysis.figure import DARK, LIGHT, plotly
from lora_lab.analysis.rendering import Grid
from lora_lab.errors import SpecError
from lora_lab.spec import Outcome, Sweep, all_masks

Fabricate = Callable[..., Sweep]
SPACE = {"method.r": {"choices": [2, 8, 32]}, "method.alpha_over_r": {"choices": [0.5, 1, 2]}}
MEGABYTE = 1e6


class Outline(HTMLParser):
    """What a page is made of: tags with attributes, ids, addresses, and how many elements stay open."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def small(fabricate: Fabricate, tmp_path: Path) -> tuple[pd.DataFrame, Path]:
    """Nine configurations, two seeds, one run that diverged, and curves of all."""
    folder = tmp_path / "runs" / "demo"
    fabricate(
        SPACE,
        lambda p, s: 1 + 1 / p["method.r"] - p["method.alpha_over_r"] / 100 + 0.004 * s,
        outcomes={(0, 1): Outcome.DIVERGED},
    )
    frame = load_results(folder)
    curves_of(folder, frame["run"].tolist())
    return frame, folder


def test_the_report_has_its_sections_and_every_figure_a_table(small: tuple[pd.DataFrame, Path]) -> None:
    report = report_of(*small)
    keys = [section.key for section in report.sections]
    assert keys == ["ablation", "consistency", "importance", "overfitting", "pareto", "curves"]
    assert len({figure.key for figure in report.figures}) == len(report.figures) >= 9
    assert all(figure.table.rows and figure.says.endswith(".") for figure in report.figures)
    assert report.findings[0].startswith("r=32 alpha_over_r=2 is best: eval_loss 1.01")
    curves = report.sections[-1].figures[0]
    assert [s.name for s in curves.series] == ["all runs", "best run t0008-s0", "its training loss", "stopped early"]
    assert curves.series[-1].texts == ("t0000-s1 diverged",)


def test_masks_bring_their_own_section() -> None:
    frame = frame_of([{"method.roles": m} for m in all_masks()], lambda p: 2 - 0.1 * len(p["method.roles"]))
    report = report_of(frame)
    (roles,) = [section for section in report.sections if section.key == "roles"]
    assert roles.sentences[0].startswith("The projection layer is worth it")
    assert len(roles.figures[0].table.rows) == 6 and len(roles.grids) == 2


def test_every_figure_is_one_that_plotly_takes(small: tuple[pd.DataFrame, Path]) -> None:
    for figure in report_of(*small).figures:
        tree = json.dumps(plotly(figure), allow_nan=False)
        for name, colour in {"@ground": "#fff", "@ink": "#000", "@grid": "#ccc", "@muted": "#999"}.items():
            tree = tree.replace(f'"{name}"', f'"{colour}"')
        go.Figure(json.loads(re.sub(r'"@(\d)"', lambda m: f'"{LIGHT[int(m[1])]}"', tree)))


def test_the_page_is_whole_offline_and_said_aloud(small: tuple[pd.DataFrame, Path]) -> None:
    report = report_of(*small, baseline={"method.r": 8, "alpha_over_r": 1})
    text = html_page(report, "Sweep <demo>", "18 runs & more", [("ICC(1)", "0.9")], ["t0000-s1 diverged: NaN"])
    page = Outline(text)
    assert not page.open and text.startswith("<!doctype html>") and page.named("html") == [{"lang": "en"}]
    assert "<h1>Sweep &lt;demo&gt;</h1>" in text and "t0000-s1 diverged: NaN" in text
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert addresses and all(value and value.startswith("#") for value in addresses)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids) and {value[1:] for value in addresses if value} <= set(ids)
    plots = [attrs for attrs in page.named("div") if "data-figure" in attrs]
    assert len(plots) == len(page.named("details")) == len(report.figures)
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    regions = [attrs for attrs in page.named("div") if attrs.get("class") == "scroll"]
    assert regions and all(r["tabindex"] == "0" and r["aria-label"] for r in regions)
    assert all("scope" in attrs for attrs in page.named("th"))
    assert "<strong>" in text and '<span class="sr"> (best)</span>' in text
    assert "better than the baseline" in text
    assert text.count('id="plotly"') == 1


def test_the_page_carries_plotly_once_and_its_figures_as_json(small: tuple[pd.DataFrame, Path]) -> None:
    text = html_page(report_of(*small), "demo", "")
    (packed,) = re.findall(r'id="plotly">([^<]*)<', text)
    assert gzip.decompress(base64.b64decode(packed)).startswith(b"/**\n* plotly.js")
    (figures,) = re.findall(r'id="figures">(.*?)</script>', text)
    assert set(json.loads(figures)) == {figure.key for figure in report_of(*small).figures}
    (palette,) = re.findall(r'id="palette">(.*?)</script>', text)
    assert json.loads(palette) == {"light": list(LIGHT), "dark": list(DARK)}


@pytest.mark.parametrize(("colours", "ground"), [(LIGHT, "#ffffff"), (DARK, "#14171a")])
def test_colours_stand_out_from_their_ground(colours: tuple[str, ...], ground: str) -> None:
    """WCAG 2.1 contrast of at least 4.5 : 1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for colour in colours:
        low, high = sorted((luminance(colour), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour


def test_a_thousand_runs_are_a_page_below_five_megabytes(tmp_path: Path) -> None:
    frame = large(500)
    curves_of(tmp_path, frame["run"].tolist(), steps=60)
    text = html_page(report_of(frame, tmp_path), "large", "")
    assert len(frame) == 1000 and len(text.encode()) < 5 * MEGABYTE
    assert "t0499-s1" in text


def test_ten_thousand_runs_are_reported_within_twenty_seconds() -> None:
    frame = large(5000)
    begun = time.process_time()
    html_page(report_of(frame), "large", "")
    assert time.process_time() - begun <= 20


def test_figures_for_papers(small: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    report = report_of(*small)
    figures = [figure for figure in report.figures if figure.key in ("consistency", "importance", "curves")]
    written = draw(figures, tmp_path / "figures")
    assert sorted(path.name for path in written) == sorted(
        f"{f.key}.{kind}" for f in figures for kind in ("png", "svg")
    )
    for path in written:
        head = path.read_bytes()[:400]
        assert head.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in head


# -- tables ----------------------------------------------------------------------------------------------


def planted(seeds: int = 3) -> pd.DataFrame:
    points = [
        {"method.r": r, "optimizer.name": o, "method.dropout": d}
        for r in (2, 8)
        for o in ("adamw", "sgd")
        for d in (0.0, 0.1)
    ]
    return frame_of(
        points, lambda p: 1 + 0.5 / p["method.r"] + 0.1 * (p["optimizer.name"] == "sgd"), seeds=seeds, noise=0.01
    )


def test_three_axes_baseline_extras_and_intervals() -> None:
    table = ablation_table(
        planted(),
        ["method.r", "optimizer.name"],
        "method.dropout",
        spread="ci",
        baseline={"r": 8, "optimizer.name": "adamw", "dropout": 0.0},
        extras=["trainable_parameters", "seconds"],
    )
    assert table.rows == ((2, "adamw"), (2, "sgd"), (8, "adamw"), (8, "sgd")) and table.baseline == (2, 0)
    assert [[cell.mark("minimize") for cell in row] for row in table.cells] == [
        ["▼", "▼"],
        ["▼", "▼"],
        ["", ""],
        ["▼", "▼"],
    ]
    assert table.cells[2][0].difference is None
    worse = table.cells[0][0].difference
    assert worse is not None and worse.mean == pytest.approx(0.5 / 2 - 0.5 / 8, abs=0.03) and worse.n == 3
    text = table.plain()
    assert "mean ± 95 % CI over 3 seeds" in text and "parameters" in text and "20,000" in text and "10.2 s" in text
    assert "worse than the baseline r=8 optimizer.name=adamw dropout=0 (paired over seeds" in text
    record = table.records()[0]
    assert record["ci"] == pytest.approx(table.cells[0][0].half) and record["holm_p"] < 0.001
    shown = ablation_table(planted(), ["method.r"], baseline={"r": 2})
    assert "paired over seeds and other settings" in shown.plain() and shown.cells[1][0].mark("minimize") == "▲"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"baseline": {"method.rr": 8}}, "did you mean 'method.r'"),
        ({"baseline": {"r": 7}}, "method.r=7 is no cell of the table"),
        ({"spread": "sem"}, "'sem' is not one of std, ci"),
        ({"extras": ["second"]}, "did you mean 'seconds'"),
    ],
)
def test_bad_options_of_a_table_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        ablation_table(planted(), "method.r", "optimizer.name", **options)  # type: ignore[arg-type]


GRID = Grid(
    ("a_b & c", "mean ± std"),
    ("r ↓", "50 %"),
    (("x|<y>", "1 ▲"), ("z", "2")),
    best=(0, 1),
    footer=("base", "3"),
    notes=("n",),
)


def test_latex_is_booktabs_with_everything_escaped() -> None:
    assert GRID.latex() == (
        "\\begin{table}\n\\centering\n\\caption{a\\_b \\& c, mean $\\pm$ std}\n\\begin{tabular}{lr}\n\\toprule\n"
        "r $\\downarrow$ & 50 \\% \\\\\n\\midrule\nx|$<$y$>$ & "
        "\\textbf{1 $\\blacktriangle$} \\\\\nz & 2 \\\\\n\\midrule\n"
        "base & 3 \\\\\n\\bottomrule\n\\end{tabular}\n\n\\smallskip\\footnotesize n\n\\end{table}\n"
    )


def test_html_and_csv_of_a_grid() -> None:
    text = GRID.html()
    assert not Outline(text).open and "x|&lt;y&gt;" in text and "<tfoot>" in text
    assert text.count("better than the baseline") == 1 and text.count("(best)") == 1
    assert GRID.csv() == "r ↓,50 %\nx|<y>,1 ▲\nz,2\nbase,3\n"
