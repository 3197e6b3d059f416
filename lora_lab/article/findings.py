"""What came of a section: its tables and verdicts, and the tree in which both are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.analysis import ablation_table
from lora_lab.analysis.claims import Evidence, Size, judge
from lora_lab.analysis.gap import with_gap
from lora_lab.analysis.grouping import searched_paths
from lora_lab.analysis.intervals import noise_of
from lora_lab.analysis.rendering import Grid
from lora_lab.analysis.verdicts import Status, Verdict
from lora_lab.article.section import ScoresOf, Section, TableOf
from lora_lab.spec.tree import thaw

if TYPE_CHECKING:
    import pandas as pd

MIXED = "mixed"
"""The word for a section whose claims came to different verdicts; each of them is shown."""


@dataclass(frozen=True)
class Finding:
    """The verdicts and tables of a section. ``notes`` say what is missing."""

    section: Section
    verdicts: tuple[Verdict, ...]
    tables: tuple[Grid, ...]
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str | None:
        """What all claims have come to, ``mixed`` where they differ; ``None`` for a section without claims."""
        statuses = {verdict.status for verdict in self.verdicts}
        if not statuses:
            return None
        return str(statuses.pop()) if len(statuses) == 1 else MIXED

    def to_tree(self) -> dict[str, Any]:
        """The JSON tree of the evidence file; no NaN in it: ``None``."""
        return {
            "id": self.section.id,
            "status": self.status,
            "verdicts": [_clean(asdict(v)) | {"sentence": v.sentence} for v in self.verdicts],
            "tables": [asdict(grid) for grid in self.tables],
            "notes": list(self.notes),
        }


def found(section: Section, frames: Mapping[str, pd.DataFrame], sizes: Mapping[str, Size]) -> Finding:
    """Judge a section by the results of its sweeps and the sizes of its configurations."""
    frames = {name: _short_paths(frame) for name, frame in frames.items()}
    verdicts = judge(section.claims, Evidence(frames, sizes))
    here = [sizes[one.label] for one in section.sizes if one.label in sizes]
    tables = [_memory_table([s for s in here if math.isnan(s.measured)])]
    tables += [_measured_table([s for s in here if not math.isnan(s.measured)])]
    tables += [_table_of(table, frames[table.sweep]) for table in section.tables if table.sweep in frames]
    notes = [f"{part.name}: no results yet" for part in section.parts if part.name not in frames and not part.planned]
    notes += [line for name, frame in frames.items() for line in _losses(name, frame)]
    return Finding(section, tuple(verdicts), tuple(grid for grid in tables if grid is not None), tuple(notes))


def _table_of(said: TableOf | ScoresOf, frame: pd.DataFrame) -> Grid | None:
    return _scores_table(said.sweep, frame) if isinstance(said, ScoresOf) else _table(said, frame)


def _metrics(frame: pd.DataFrame) -> list[str]:
    """The columns of benchmark scores, without those that say how sure they are."""
    names = [str(name) for name in frame.columns if str(name).startswith("scores.")]
    return [name for name in names if not name.endswith((".n", ".ties", "_stderr"))]


def _scores_table(sweep: str, frame: pd.DataFrame) -> Grid | None:
    """A row a metric: the base model's, the mean over runs with half its 95 % interval, and the change."""
    frame = frame[frame["outcome"] == "COMPLETED"]
    rows = []
    for name in _metrics(frame):
        short = name.removeprefix("scores.")
        task = short.rpartition(".")[0]
        values = frame[name].dropna().to_numpy(dtype=float)
        before = frame[f"base_{name}"].dropna().to_numpy(dtype=float)
        if not len(values) or not len(before):
            continue
        noise = noise_of([values.tolist()])
        half = noise.half_width(len(values)) if noise else math.nan
        spread = "" if math.isnan(half) else f" ±{half:.4f}"
        after, base = float(values.mean()), float(before.mean())
        count = f"{frame[f'scores.{task}.n'].max():.0f}"
        rows.append((short, count, f"{base:.4f}", f"{after:.4f}{spread}", f"{after - base:+.4f}"))
    if not rows:
        return None
    head = ("benchmark", "documents", "base model", "trained", "change")
    title = f"{sweep}: benchmark scores before and after training"
    return Grid((title,), head, tuple(rows), notes=(f"trained: mean over {len(frame)} runs",))


def _table(said: TableOf, frame: pd.DataFrame) -> Grid:
    frame = with_gap(frame)
    baseline = {path: thaw(value) for path, value in said.baseline} or None
    table = ablation_table(
        frame,
        list(said.rows) or None,
        said.columns,
        said.metric,
        spread="ci",
        baseline=baseline,
        extras=(*said.extras, *_metrics(frame)) if said.columns is None else (),
    )
    of = table.title[0] if said.ranked else said.metric
    title = (f"{said.sweep}: {of}", *(line.replace("seeds", said.over) for line in table.title[1:]))
    grid = replace(table.grid, title=title)
    if not said.ranked:
        grid = replace(grid, best=None)
    if not said.article:
        return grid
    return replace(
        grid,
        head=(*grid.head, "in the article"),
        rows=tuple((*row, said.article.get(row[0], "–")) for row in grid.rows),
        footer=None if grid.footer is None else (*grid.footer, ""),
    )


def _memory_table(sizes: Sequence[Size]) -> Grid | None:
    if not sizes:
        return None
    rows = []
    for size in sizes:
        theirs = not math.isnan(size.article)
        rows.append(
            (
                size.label,
                f"{size.parameters:,}",
                f"{size.planned / 1e9:.2f}",
                f"{size.article / 1e9:.2f}" if theirs else "–",
                f"{size.planned / size.article - 1:+.1%}" if theirs else "–",
            )
        )
    head = ("Llama-2-7B on a GPU", "parameters", "planned GB", "article GB", "difference")
    note = "planned by tracing a step (lora-lab plan); the article's are measured peaks of the allocator"
    return Grid(("peak memory",), head, tuple(rows), notes=(note,))


def _measured_table(sizes: Sequence[Size]) -> Grid | None:
    if not sizes:
        return None
    rows = tuple((s.label, f"{s.parameters:,}", f"{s.planned / 1e6:.1f}", f"{s.measured / 1e6:.1f}") for s in sizes)
    head = ("run", "parameters", "planned MB", "measured MB")
    return Grid(("adapter, gradients and optimizer state of a run",), head, rows)


def _losses(name: str, frame: pd.DataFrame) -> list[str]:
    bad = frame[~frame["outcome"].isin(["COMPLETED"])]
    counts = bad["outcome"].value_counts()
    return [f"{name}: {count} of {len(frame)} runs ended {outcome}" for outcome, count in counts.items()]


def _short_paths(frame: pd.DataFrame) -> pd.DataFrame:
    """Data files by their names alone, so that a table is the same wherever its folder lies."""
    if "data.path" not in searched_paths(frame):
        return frame
    out = frame.assign(**{"data.path": [Path(str(value)).stem for value in frame["data.path"]]})
    sweep = dict(frame.attrs["sweep"])
    choices = [Path(str(value)).stem for value in sweep["space"]["data.path"]["choices"]]
    out.attrs = {**frame.attrs, "sweep": sweep | {"space": sweep["space"] | {"data.path": {"choices": choices}}}}
    return out


def _clean(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: (value if math.isfinite(value) else None) if isinstance(value, float) else _plain(value)
        for name, value in tree.items()
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Status) else value
