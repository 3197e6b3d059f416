"""Results of other sweeps, taken over: equal keys are not trained again, and samplers begin with their points."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_lab.errors import SpecError, SweepFolderError
from lora_lab.files import read_json
from lora_lab.spec import Domain, RunResult, RunSpec, Sweep, at_path, thaw, to_tree
from lora_lab.study.folder import SweepFolder
from lora_lab.study.state import SHARED


@dataclass(frozen=True)
class Imported:
    """What other sweeps have settled: ``points`` of this sweep's space, in their order, and results by key."""

    points: list[dict[str, Any]]
    results: list[RunResult]


def taken_over(sweep: Sweep, folder: Path) -> Imported:
    """Read the sweeps in ``sweep.imports``; ``folder`` is that of ``sweep`` itself.

    A point is taken where the other run is a run of this sweep too: all that this sweep searches lies in its domains,
    and all else is equal. A result is taken wherever its experiment may turn up.

    Raises:
        SweepFolderError: a folder holds no sweep.
        CheckpointError: a result there is torn.
    """
    points: dict[str, dict[str, Any]] = {}
    results: dict[str, RunResult] = {}
    for name in sweep.imports:
        there = Path(name)
        if not (there / "sweep.json").is_file():
            raise SweepFolderError(f"sweep.imports: {name} is not a sweep's folder, it has no sweep.json.")
        tree = read_json(there / "sweep.json")
        other = Sweep.from_tree({key: value for key, value in tree.items() if key != "key"})
        found, torn = SweepFolder(there).load_results()
        if torn:
            raise next(iter(torn.values()))
        for result in sorted(found.values(), key=lambda r: (r.trial, r.seed)):
            spec = other.spec_of(thaw(result.point), result.seed)
            if result.outcome not in SHARED or result.key != spec.key:  # a branch has a key of its own
                continue
            adapter = os.path.relpath(there / result.adapter, folder) if result.adapter else None
            results.setdefault(result.key, replace(result, adapter=adapter, message=f"{result.run} of {name}"))
            point = point_of(sweep, spec)
            if point is not None:
                points.setdefault(repr(point), point)
    return Imported(list(points.values()) if sweep.points is None else [], list(results.values()))


def point_of(sweep: Sweep, spec: RunSpec) -> dict[str, Any] | None:
    """The point of ``sweep`` at which ``spec`` lies; ``None`` where it is none of its runs."""
    tree = to_tree(spec)
    outside = False

    def choose(path: str, domain: Domain) -> Any:
        nonlocal outside
        value = at_path(tree, path)
        found = domain.take(value)
        outside = outside or found is None
        return value if found is None else found[0]

    try:
        point = sweep.space.walk(sweep.base, choose)
        same = not outside and sweep.spec_of(point, spec.seed).key == spec.key
    except SpecError:
        return None
    return point if same else None
