"""What is measured of the adapters that a section's sweeps have left, in the shape of a sweep's results.

A :class:`Table` has axes and rows, as a sweep has a space and runs; :meth:`Table.frame` makes the results frame of it,
so that every table and every test of :mod:`lora_lab.analysis` reads it like any other. A measurement is made once: its
rows are kept beside the sweeps, with the keys of the runs that they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from lora_lab.analysis import read_results
from lora_lab.article.machine import machine
from lora_lab.errors import CheckpointError, SpecError
from lora_lab.files import read_json, write_json
from lora_lab.spec import Outcome

if TYPE_CHECKING:
    from lora_lab.adapters import Reference

Say = Callable[[str], None]
_LOSSES = ("eval_loss", "train_loss", "best_eval_loss")


@dataclass(frozen=True)
class Table:
    """Rows along ``axes``; each has a value for every one of them, ``seed`` (what it is paired by), and numbers.

    ``objective`` is the number that a table shows first, ``higher`` whether more of it is better.
    """

    axes: tuple[str, ...]
    objective: str
    rows: tuple[Mapping[str, Any], ...]
    higher: bool = False

    def frame(self, name: str) -> pd.DataFrame:
        """The rows as the completed runs of a sweep called ``name``; numbers that a row does not have are NaN."""
        out = []
        points = list(dict.fromkeys(tuple(row[axis] for axis in self.axes) for row in self.rows))
        for i, row in enumerate(self.rows):
            trial = points.index(tuple(row[axis] for axis in self.axes))
            whose = {"sweep": name, "trial": trial, "run": f"{name}-{i}", "key": f"{name}-{i}"}
            out.append(whose | {"outcome": str(Outcome.COMPLETED)} | dict.fromkeys(_LOSSES, math.nan) | dict(row))
        frame = pd.DataFrame(out)
        frame.attrs["sweep"] = {
            "name": name,
            "space": {axis: {"choices": list(dict.fromkeys(row[axis] for row in self.rows))} for axis in self.axes},
            "objective": {"metric": self.objective, "direction": "maximize" if self.higher else "minimize"},
            "sampler": "grid",
            "trials": len(points),
            "repeats": len({row["seed"] for row in self.rows}),
        }
        return frame


class Measurement(Protocol):
    """Something that is measured of a section's adapters; a frozen value, so that it can be told from another."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The sweeps whose adapters it takes."""

    @property
    def timed(self) -> bool:
        """Whether what it measures is the machine's as much as the adapters', and is measured anew on another."""

    def __call__(self, runs: Mapping[str, Sequence[Reference]], budget: str, say: Say) -> dict[str, Table]:
        """Measure the runs of each sweep, as thoroughly as the budget says; the tables by name."""


def frames_of(measurement: Measurement, folder: Path, budget: str, say: Say) -> dict[str, pd.DataFrame]:
    """The results frames of a measurement of the sweeps in ``folder``; measured unless they are there.

    A table to which no run had anything to give has no frame.

    Raises:
        SpecError: a sweep has no completed run.
        BadInput: adapters that are gone or cannot be used.
    """
    from lora_lab.adapters import resolve

    results = {part: _completed(folder / part) for part in measurement.parts}
    of = {
        "measurement": repr(measurement),
        "budget": budget,
        "keys": {part: sorted(str(tree["key"]) for tree in trees) for part, trees in results.items()},
    }
    if measurement.timed:
        of["machine"] = machine()
    path = folder / measurement.parts[0] / "measured.json"
    tables = _kept(path, of)
    if tables is None:
        runs = {
            part: resolve([str(folder / part / "runs" / tree["run"]) for tree in trees])
            for part, trees in results.items()
        }
        tables = measurement(runs, budget, say)
        trees = {
            name: {
                "axes": list(table.axes),
                "objective": table.objective,
                "higher": table.higher,
                "rows": [dict(row) for row in table.rows],
            }
            for name, table in tables.items()
        }
        write_json(path, {"of": of, "tables": trees})
    return {name: table.frame(name) for name, table in tables.items() if table.rows}


def _completed(folder: Path) -> list[dict[str, Any]]:
    found = [tree for tree in read_results(folder) if tree["outcome"] == Outcome.COMPLETED]
    if not found:
        raise SpecError(f"{folder.name} has no completed run, so nothing can be measured of its adapters.")
    return found


def _kept(path: Path, of: Mapping[str, Any]) -> dict[str, Table] | None:
    try:
        tree = read_json(path)
    except (FileNotFoundError, CheckpointError):
        return None
    if tree.get("of") != of:
        return None
    return {
        name: Table(tuple(one["axes"]), one["objective"], tuple(one["rows"]), one["higher"])
        for name, one in tree["tables"].items()
    }
