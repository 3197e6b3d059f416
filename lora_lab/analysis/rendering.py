"""A grid of texts as a terminal table, plain text and Markdown. Every table of the reports is one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """Texts in rows and columns, with what is needed to set them.

    The first ``labels`` columns are row labels (left-aligned), the others numbers. ``best`` is the (row, column) to
    stand out; ``footer`` is a last row set apart (the base model); ``title`` and ``notes`` stand above and below.
    """

    title: tuple[str, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    best: tuple[int, int] | None = None
    footer: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def rich(self, width: int | None = None) -> Table:
        """For a terminal: the best in bold. Where ``width`` columns do not hold it, cells take two lines."""
        lines = [self.head, *self.rows, *([self.footer] if self.footer else [])]
        natural = _width(lines, padding=3)
        stacked = width is not None and natural > width
        if stacked:
            lines = [tuple(_stacked(text) if j >= self.labels else text for j, text in enumerate(x)) for x in lines]
        tight = width is not None and _width(lines, padding=3) > width
        drawn = Table(
            title=Text("\n".join(self.title)) if self.title else None,
            title_style="",
            title_justify="left",
            caption=Text("; ".join(self.notes)) if self.notes else None,
            caption_style="dim",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 0) if tight else (0, 1),
            pad_edge=False,
            min_width=min(max(map(cell_len, self.title), default=0), width or 80) or None,
        )
        for j, name in enumerate(self.head):
            drawn.add_column(Text(name), justify="left" if j < self.labels else "right", overflow="fold")
        for i in range(len(self.rows)):
            texts = [Text(text) for text in lines[i + 1]]
            if self.best is not None and self.best[0] == i:
                texts[self.best[1]].stylize("bold green")
            drawn.add_row(*texts, end_section=i == len(self.rows) - 1)
        if self.footer:
            drawn.add_row(*(Text(text) for text in lines[-1]), style="dim")
        return drawn

    def plain(self) -> str:
        """Aligned text for a pipe; the best is marked with ``*``."""
        lines = [self.head, *self.rows, *([self.footer] if self.footer else [])]
        place = None if self.best is None else (self.best[0] + 1, self.best[1])
        blank = "  " if place else ""
        marked = [
            [text if j < self.labels else text + (" *" if (i, j) == place else blank) for j, text in enumerate(line)]
            for i, line in enumerate(lines)
        ]
        widths = [max(cell_len(line[j]) for line in marked) for j in range(len(self.head))]
        text = [
            "  ".join(_aligned(t, widths[j], j < self.labels) for j, t in enumerate(line)).rstrip() for line in marked
        ]
        rule = "-" * max(map(cell_len, text))
        text.insert(1, rule)
        if self.footer:
            text.insert(-1, rule)
        notes = [*(["* best"] if place else []), *self.notes]
        return "\n".join([*self.title, *text, *(["; ".join(notes)] if notes else [])]) + "\n"

    def markdown(self) -> str:
        """A Markdown table between its title and notes; the best in bold."""
        rows = [[_escaped(text) for text in row] for row in self.rows]
        if self.best is not None:
            i, j = self.best
            rows[i][j] = f"**{rows[i][j]}**"
        if self.footer:
            rows.append([_escaped(text) for text in self.footer])
            rows[-1][0] = f"*{rows[-1][0]}*"
        head = [_escaped(text) for text in self.head]
        rule = [":--" if j < self.labels else "--:" for j in range(len(head))]
        lines = [", ".join(self.title), "", *("| " + " | ".join(line) + " |" for line in [head, rule, *rows])]
        if self.notes:
            lines += ["", "; ".join(self.notes)]
        return "\n".join(lines) + "\n"


def digits_for(std: float, largest: float) -> int:
    """Decimals for numbers up to ``largest`` that vary by ``std``: two digits of ``std``; three if it is unknown."""
    if not (math.isfinite(std) and std > 0):
        return 3 if largest < 1000 else 0
    return min(max(2 if largest < 1000 else 0, 1 - math.floor(math.log10(std))), 5)


def _width(lines: list[tuple[str, ...]], padding: int) -> int:
    """Columns that ``lines`` take, ``padding`` between two of them."""
    cells = zip(*lines, strict=True)
    return sum(max(cell_len(part) for text in column for part in text.split("\n")) + padding for column in cells)


def _stacked(text: str) -> str:
    return text.replace(" ± ", "\n± ").replace(" (", "\n(")


def _aligned(text: str, width: int, left: bool) -> str:
    gap = " " * (width - cell_len(text))
    return text + gap if left else gap + text


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
