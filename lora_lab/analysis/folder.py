"""A sweep's folder as it lies on disk: ``sweep.json`` and ``runs/<id>/result.json``.

Standard library only, so that ``status`` answers at once. What a sweep is comes from
:class:`lora_lab.spec.Sweep`; here only the part of it that tables and reports read is taken, because
validating every point of a large grid again would take longer than reading its results.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.errors import CheckpointError, SpecError, SweepFolderError, nearest
from lora_lab.files import read_json
from lora_lab.spec import FIRST_BRANCH, Choices, FloatRange, IntRange, Masks, Objective, Outcome, Space, to_tree

_RESULT_FIELDS = frozenset({"run", "trial", "seed", "key", "outcome", "point"})
_OUTCOMES = frozenset(str(outcome) for outcome in Outcome)


@dataclass(frozen=True)
class SweepRecord:
    """What ``sweep.json`` says that a reader of results needs."""

    folder: Path
    name: str
    key: str
    space: Space
    objective: Objective
    sampler: str
    trials: int | None
    repeats: int
    objectives: tuple[Objective, ...] = ()
    """Where there are several; ``objective`` is the first of them then."""
    planned: int | None = None

    @property
    def planned_trials(self) -> int:
        """How many trials the sweep will hold when it is done."""
        if self.planned is not None:
            return self.planned
        points = _grid_size(self.space) if self.sampler == "grid" else None
        if points is None:
            return self.trials or 0
        return min(points, self.trials or points)

    @property
    def planned_runs(self) -> int:
        """Trials times seeds."""
        return self.planned_trials * self.repeats

    def at(self, adapter: str) -> Path:
        """Where an adapter lies, as short as can be: that of an imported run is in another sweep's folder."""
        there = self.folder / adapter
        short = Path(os.path.normpath(there))
        return short if short.exists() and short.samefile(there) else there

    def to_attrs(self) -> dict[str, Any]:
        """The plain tree that :func:`load_results` leaves in ``frame.attrs["sweep"]``."""
        return {
            "name": self.name,
            "space": self.space.to_tree(),
            "objective": {"metric": self.objective.metric, "direction": self.objective.direction},
            "sampler": self.sampler,
            "trials": self.trials,
            "repeats": self.repeats,
            "objectives": [to_tree(objective) for objective in self.objectives],
        }


def find_sweep(name: str | None = None, root: Path = Path("runs")) -> Path:
    """The folder of a sweep: ``name`` is a folder, a name under ``root``, or the YAML it was started with.

    Without a name: the sweep under ``root`` that was worked on last.

    Raises:
        SweepFolderError: there is none, with the nearest name that exists.
    """
    if name is None:
        sweeps = {folder.name: folder for folder in _sweeps_in(root)}
        if not sweeps:
            raise SweepFolderError(
                f"{root}/ holds no sweep yet. Start one with: lora-lab sweep rank_alpha; "
                "or name the folder of a sweep that lies elsewhere."
            )
        return max(sweeps.values(), key=_last_change)
    given = Path(name)
    for folder in (given, root / name, root / given.stem if given.suffix in (".yaml", ".yml") else root / name):
        if (folder / "sweep.json").is_file():
            return folder
    if given.is_dir():
        raise SweepFolderError(f"{given}: not a sweep's folder, it has no sweep.json. Give the folder of a sweep.")
    known = [folder.name for folder in _sweeps_in(root)]
    there = f" Sweeps in {root}/: {', '.join(sorted(known)[:20])}." if known else f" {root}/ holds no sweep yet."
    raise SweepFolderError(
        f"no sweep {name!r}, neither in {root}/ nor as a folder{nearest(name, known)}{there} "
        "Start one with: lora-lab sweep NAME."
    )


def read_sweep(folder: Path | str) -> SweepRecord:
    """Read ``<folder>/sweep.json``.

    Raises:
        SweepFolderError: the folder or the file is not there, or is of another shape.
        CheckpointError: the file is torn.
    """
    path = Path(folder) / "sweep.json"
    try:
        tree = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SweepFolderError(
            f"{folder}: no sweep there (no sweep.json). Start one with: lora-lab sweep NAME; "
            "lora-lab status without a name shows the newest sweep in runs/."
        ) from error
    try:
        return record_of(tree, Path(folder))
    except (KeyError, TypeError, AttributeError, SpecError) as error:
        raise SweepFolderError(
            f"{path}: not the record of a sweep ({type(error).__name__}: {error}). "
            "It was written by another version, or by hand; start the sweep anew under another sweep.name."
        ) from error


def record_of(tree: Mapping[str, Any], folder: Path) -> SweepRecord:
    """The record in a sweep's tree; ``KeyError``, ``TypeError`` or ``SpecError`` where it is no sweep's."""
    objectives = tuple(Objective.read(said, "sweep.objectives") for said in tree.get("objectives", ()))
    return SweepRecord(
        folder=folder,
        name=tree["name"],
        key=tree["key"],
        space=Space.from_tree(tree["space"]),
        objective=objectives[0] if objectives else Objective.read(tree["objective"], "sweep.objective"),
        sampler=tree["sampler"]["name"],
        trials=tree["trials"],
        repeats=tree["repeats"],
        objectives=objectives,
        planned=tree.get("planned_trials"),
    )


def read_results(folder: Path | str) -> list[dict[str, Any]]:
    """The trees of all ``<folder>/runs/*/result.json``, in the order of their run ids; empty where there are none.

    Runs that branched off another (``lora-lab extend`` and ``clone``) are not the sweep's own and are left out.

    Raises:
        CheckpointError: a file is torn, or is not a run's result; it is named.
    """
    runs = Path(folder) / "runs"
    if not runs.is_dir():
        return []
    with os.scandir(runs) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    results = []
    for name in names:
        tree = read_result(runs / name)
        if tree is not None and tree["trial"] < FIRST_BRANCH:
            results.append(tree)
    results.sort(key=lambda tree: (tree["trial"], tree["seed"]))
    return results


def read_result(run_folder: Path) -> dict[str, Any] | None:
    """The tree of one run's ``result.json``, or ``None`` while it has none.

    Raises:
        CheckpointError: the file is torn, or is not a run's result.
    """
    path = run_folder / "result.json"
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    remedy = "Move it away to let its run be trained again."
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: torn or not JSON ({error}). {remedy}") from error
    if not isinstance(tree, Mapping) or not tree.keys() >= _RESULT_FIELDS:
        missing = sorted(_RESULT_FIELDS - tree.keys()) if isinstance(tree, Mapping) else sorted(_RESULT_FIELDS)
        raise CheckpointError(f"{path}: not the result of a run, it lacks {', '.join(missing)}. {remedy}")
    if tree["outcome"] not in _OUTCOMES:
        raise CheckpointError(f"{path}: unknown outcome {tree['outcome']!r}. {remedy}")
    return dict(tree)


def _sweeps_in(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [folder for folder in sorted(root.iterdir()) if (folder / "sweep.json").is_file()]


def _last_change(folder: Path) -> float:
    """Newest of: ``sweep.json`` written, a run folder added, a file written into the newest run folder."""
    times = [(folder / "sweep.json").stat().st_mtime]
    runs = folder / "runs"
    if runs.is_dir():
        times.append(runs.stat().st_mtime)
        times += [entry.stat().st_mtime for entry in os.scandir(runs) if entry.is_dir()]
    return max(times)


def _grid_size(space: Space) -> int | None:
    """Points of the grid, counted and not made; ``None`` where a domain has no finite list of values."""
    sizes = []
    for _, domain in space.domains:
        match domain:
            case Choices(values) | Masks(values):
                sizes.append(len(values))
            case IntRange(low, high, step, False):
                sizes.append(len(range(low, high + 1, step)))
            case FloatRange(low, high, float(step), False):
                sizes.append(int((high - low) / step + 1e-9) + 1)
            case _:
                return None
    return math.prod(sizes)
