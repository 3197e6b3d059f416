"""The report as one HTML file that opens anywhere: no network, light and dark, readable without its plots.

Plotly's own bundle from the ``plotly`` package lies in the page once, compressed (1.5 MB instead of 4.8), and is
unpacked by the browser; a browser too old for that, or without scripts, shows the tables that stand under every plot.
"""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from lora_lab.analysis.figure import DARK, LIGHT, Figure, plotly
from lora_lab.analysis.report import Report, Section


@dataclass(frozen=True)
class Findings:
    """What a page says where it is no sweep's report."""

    sections: tuple[Section, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, in order."""
        return tuple(figure for section in self.sections for figure in section.figures)

    @property
    def findings(self) -> tuple[str, ...]:
        """The first sentence of each section that has one."""
        return tuple(section.sentences[0] for section in self.sections if section.sentences)


TROUBLES = '<section aria-labelledby="troubles"><h2 id="troubles">Runs that did not complete</h2><ul>{}</ul></section>'


def html_page(
    report: Report | Findings,
    title: str,
    headline: str,
    facts: Sequence[tuple[str, str]] = (),
    troubles: Sequence[str] = (),
) -> str:
    """The HTML text. ``facts`` are the large numbers at its head (name, value), ``troubles`` a line a failed run."""
    sections = "\n".join(_section(section) for section in report.sections)
    links = "".join(f'<li><a href="#{s.key}">{html.escape(s.title)}</a></li>' for s in report.sections)
    tiles = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts)
    found = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in report.findings)
    bad = "".join(f"<li>{html.escape(line)}</li>" for line in troubles)
    data = {figure.key: plotly(figure) for figure in report.figures}
    assets = files("lora_lab.analysis").joinpath("assets")
    return Template(assets.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        headline=html.escape(headline),
        links=links,
        facts=f"<dl>{tiles}</dl>" if tiles else "",
        findings=f"<ul>{found}</ul>",
        troubles=TROUBLES.format(bad) if bad else "",
        sections=sections,
        style=assets.joinpath("page.css").read_text(encoding="utf-8"),
        script=assets.joinpath("page.js").read_text(encoding="utf-8"),
        palette=_json({"light": LIGHT, "dark": DARK}),
        figures=_json(data),
        plotly=_bundle() if data else "",
    )


def _section(section: Section) -> str:
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in section.sentences)
    grids = "".join(_scrolled(grid.html(), ", ".join(grid.title)) for grid in section.grids)
    figures = "".join(_figure(figure) for figure in section.figures)
    name = html.escape(section.title)
    return (
        f'<section id="{section.key}" aria-labelledby="{section.key}-title">'
        f'<h2 id="{section.key}-title">{name}</h2>{said}{grids}<div class="figures">{figures}</div></section>'
    )


def _figure(figure: Figure) -> str:
    title, says = html.escape(figure.title), html.escape(figure.says)
    table = _scrolled(figure.table.html(), f"{figure.title}: table")
    return (
        f"<figure><figcaption><h3>{title}</h3><p>{says}</p></figcaption>"
        f'<div class="plot" id="plot-{html.escape(figure.key)}" data-figure="{html.escape(figure.key)}" role="img" '
        f'aria-label="{title}. {says} The numbers are in the table below."></div>'
        f"<details><summary>Table: {title}</summary>{table}</details></figure>"
    )


def _scrolled(table: str, name: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(name)}">{table}</div>'


def _json(tree: object) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")


@functools.cache
def _bundle() -> str:
    """Plotly's minified bundle, gzipped, in base64."""
    source = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
