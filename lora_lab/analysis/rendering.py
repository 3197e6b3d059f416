"""A grid of texts as a terminal table, plain text, Markdown, LaTeX, HTML and CSV. Every table of the reports is one."""

from __future__ import annotations

import csv
import html
import io
import math
import re
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

    def fits(self, width: int) -> bool:
        """True where every cell has its line on a terminal of ``width`` columns."""
        return _width([self.head, *self.rows, *([self.footer] if self.footer else [])], padding=3) <= width

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

    def latex(self) -> str:
        """A table for a paper (packages booktabs and amssymb): the best in bold, title as caption, notes below."""
        spec = "l" * self.labels + "r" * (len(self.head) - self.labels)
        rows = [[_tex(text) for text in row] for row in self.rows]
        if self.best is not None:
            i, j = self.best
            rows[i][j] = f"\\textbf{{{rows[i][j]}}}"
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_tex(', '.join(self.title))}}}",
            f"\\begin{{tabular}}{{{spec}}}",
            "\\toprule",
            " & ".join(_tex(text) for text in self.head) + r" \\",
            "\\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
        ]
        if self.footer:
            lines += ["\\midrule", " & ".join(_tex(text) for text in self.footer) + r" \\"]
        lines += ["\\bottomrule", "\\end{tabular}"]
        if self.notes:
            lines += ["", f"\\smallskip\\footnotesize {_tex('; '.join(self.notes))}"]
        return "\n".join([*lines, "\\end{table}"]) + "\n"

    def html(self) -> str:
        """An HTML table with caption and scopes; the best has the class ``best`` and says so to a screen reader."""
        heads = "".join(
            f'<th scope="col"{"" if j < self.labels else " class=n"}>{html.escape(name)}</th>'
            for j, name in enumerate(self.head)
        )
        body = []
        for i, row in enumerate(self.rows):
            cells = [self._html_cell(text, j, (i, j) == self.best) for j, text in enumerate(row)]
            body.append(f"<tr>{''.join(cells)}</tr>")
        foot = ""
        if self.footer:
            foot = "".join(self._html_cell(text, j, False) for j, text in enumerate(self.footer))
            foot = f"<tfoot><tr>{foot}</tr></tfoot>"
        caption = f"<caption>{html.escape(', '.join(self.title))}</caption>" if self.title else ""
        notes = f'<p class="note">{html.escape("; ".join(self.notes))}</p>' if self.notes else ""
        rows = "\n".join(body)
        return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody>{foot}</table>{notes}\n"

    def csv(self) -> str:
        """The texts as comma-separated values, the head first."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows, *([self.footer] if self.footer else [])])
        return out.getvalue()

    def _html_cell(self, text: str, j: int, best: bool) -> str:
        shown = html.escape(text)
        for mark, said in SPOKEN.items():
            shown = shown.replace(mark, f'<span aria-hidden="true">{mark}</span><span class="sr">{said}</span>')
        if best:
            shown = f'<strong>{shown}</strong><span class="sr"> (best)</span>'
        kind = " class=best" if best else ""
        if j == 0:
            return f'<th scope="row"{kind}>{shown}</th>'
        return f"<td{kind if kind or j < self.labels else ' class=n'}>{shown}</td>".replace(
            "class=best", 'class="n best"'
        )


SPOKEN = {"▲": "better than the baseline", "▼": "worse than the baseline"}
"""What a screen reader says for a mark."""

_TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
    "–": "--",
    "…": r"\ldots{}",
    "²": "$^2$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
} | {c: "\\" + c for c in "&%$#_{}"}


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda match: _TEX[match[0]], text)


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
