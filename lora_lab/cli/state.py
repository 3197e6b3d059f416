"""How far a sweep is: the tree that ``lora-lab status --json`` prints, and what else is to be said of its search."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.analysis import Best, SweepRecord

MOST_REFUSED = 3
"""Refused points whose reason is shown; the rest are counted."""
TAIL_BYTES = 1 << 16
"""Read from the end of a run's metrics; its last steps lie there."""


@dataclass(frozen=True)
class ActiveRun:
    """A run that was begun and is not settled, as its metrics file says.

    ``point`` holds its values at the searched paths; ``state`` is ``running`` while a process works on the sweep
    and the run was not put aside, else ``paused``. ``updated`` is in Unix seconds; losses are ``None`` when not known
    or not finite.
    """

    run: str
    point: dict[str, Any]
    state: str
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    updated: float | None


def status_tree(record: SweepRecord) -> dict[str, Any]:
    """The status for ``--json``.

    Results are those of the study's log; where it has none, or cannot be read now, those of the folder. ``state`` is
    ``running`` (a process works on the sweep), ``done`` or ``paused``; ``eta_seconds`` is ``null`` unless it is running
    and a run has been settled.
    """
    from lora_lab.analysis import read_results
    from lora_lab.launch.jobs import Jobs, described, execution_with
    from lora_lab.spec import SETTLED
    from lora_lab.study.look import living, look, result_trees
    from lora_lab.study.standing import standing

    study = look(record.folder)
    results = read_results(record.folder) if study is None or study.sweep is None else result_trees(study)
    outcomes = Counter(str(tree["outcome"]) for tree in results)
    settled = sum(count for outcome, count in outcomes.items() if outcome in SETTLED)
    workers = [called(worker.process) for worker in living(study)] if study is not None else []
    worker = workers[0] if workers else None
    found = standing(study) if study is not None else None
    planned_runs = found.planned_runs if found else record.planned_runs
    active = active_runs(record, {str(t["run"]) for t in results if t["outcome"] in SETTLED}, worker is not None)
    branches = list(found.branches) if found else []
    jobs = list(Jobs(record.folder).latest().values())
    state = "running" if worker else "done" if settled >= planned_runs and not branches else "paused"
    return {
        "sweep": record.name,
        "folder": str(record.folder),
        "key": record.key,
        "state": state,
        "worker": worker,
        "workers": workers,
        "jobs": described(execution_with(record.folder), jobs) if jobs else [],
        "halted": study.halted if study is not None else None,
        "stopped": found.stopped if found else None,
        "refused": {str(trial): why for trial, why in found.refused.items()} if found else {},
        "shared": found.shared if found else {},
        "stages": {str(t["run"]): t["stage"] for t in results if t.get("stage")},
        "waiting": list(found.waiting) if found else [],
        "copies": {str(trial): list(origin) for trial, origin in found.copies.items()} if found else {},
        "branches": branches,
        "planned_trials": found.planned_trials if found else record.planned_trials,
        "trials": len({tree["trial"] for tree in results}),
        "planned_runs": planned_runs,
        "settled_runs": settled,
        "outcomes": dict(sorted(outcomes.items())),
        "active": [asdict(run) for run in active],
        "best": _best(record, results),
        "eta_seconds": seconds_left(results, active, planned_runs) if state == "running" else None,
    }


def called(process: Mapping[str, Any]) -> str:
    """``process 123 on host``."""
    return f"process {process['pid']} on {process['host']}"


def active_runs(record: SweepRecord, settled: set[str], busy: bool) -> list[ActiveRun]:
    """The runs that were begun and have no result, by their ``metrics.jsonl``."""
    runs = record.folder / "runs"
    if not runs.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(runs) if entry.is_dir() and entry.name not in settled)
    found = [_active(runs / name, record.space.paths, busy) for name in names]
    return [run for run in found if run is not None]


def seconds_left(results: Sequence[Mapping[str, Any]], active: Sequence[ActiveRun], planned: int) -> float | None:
    """Seconds until the sweep is done, at the pace of its trained runs; ``None`` before the first.

    The pace is settled runs per second in which any of them was training; time in which the sweep lay still
    does not count.
    """
    spans = sorted(
        (t["started"], t["ended"]) for t in results if t.get("started") and t.get("ended") and t.get("steps")
    )
    busy, reached = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    if not spans or busy <= 0:
        return None
    underway = sum(run.step / run.total_steps for run in active if run.total_steps and run.state == "running")
    return max(0.0, planned - len(results) - underway) * busy / len(spans)


def _active(folder: Path, paths: Sequence[str], busy: bool) -> ActiveRun | None:
    from lora_lab.spec import at_path

    records = _records(folder / "metrics.jsonl")
    if not records:
        return None
    started: dict[str, Any] = next((r for r in reversed(records) if r["kind"] == "started"), {})
    spec = started.get("spec")
    step: dict[str, Any] = next((r for r in reversed(records) if r["kind"] == "step"), {})
    evaluation: dict[str, Any] = next((r for r in reversed(records) if r["kind"] == "evaluation"), {})
    return ActiveRun(
        run=folder.name,
        point={path: at_path(spec, path) for path in paths} if spec is not None else {},
        state="running" if busy and records[-1]["kind"] != "ended" else "paused",
        step=int(step.get("step", started.get("first_step", 0))),
        total_steps=started.get("total_steps"),
        loss=_finite(step.get("loss")),
        eval_loss=_finite(evaluation.get("loss")),
        updated=_finite(records[-1].get("time")),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _records(path: Path) -> list[dict[str, Any]]:
    """The first line and the last lines of a metrics file; a line that is cut off at either end is left out."""
    try:
        with path.open("rb") as file:
            head = file.readline()
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(head), size - TAIL_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return []
    records = []
    for line in [head, *tail.split(b"\n")]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "kind" in record:
            records.append(record)
    return records


def _best(record: SweepRecord, results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    from lora_lab.analysis.grouping import best_of_results

    best = best_of_results(record, results)
    return None if best is None else best_tree(record, best)


def best_tree(record: SweepRecord, best: Best) -> dict[str, Any]:
    """The best configuration for JSON. ``std`` is ``null`` with one seed."""
    found = best.configuration
    return {
        "metric": best.metric,
        "direction": best.direction,
        "point": dict(found.point),
        "mean": found.mean,
        "std": found.std if math.isfinite(found.std) else None,
        "n": found.n,
        "base": found.base,
        "trial": best.trial,
        "run": best.run,
        "seed": best.seed,
        "value": best.value,
        "adapter": None if best.adapter is None else str(record.at(best.adapter)),
    }


def search_lines(tree: Mapping[str, Any]) -> list[str]:
    """What else is to be said of a search: points refused, results shared, trials paused, why it was stopped."""
    lines = []
    if refused := tree["refused"]:
        lines.append(f"{len(refused)} points refused, and never trained:")
        lines += [f"  trial {trial}: {why}" for trial, why in list(refused.items())[:MOST_REFUSED]]
        lines += [f"  … and {len(refused) - MOST_REFUSED} more"] if len(refused) > MOST_REFUSED else []
    if shared := tree["shared"]:
        run, other = next(iter(shared.items()))
        lines.append(f"{len(shared)} runs share the result of an equal run ({run} that of {other})")
    if stages := tree["stages"]:
        run, began = next(iter(stages.items()))
        lines.append(f"{len(stages)} runs began with the steps of a shorter one ({run} with {began})")
    if tree["waiting"]:
        lines.append(f"{len(tree['waiting'])} trials are paused at a rung")
    if copies := tree["copies"]:
        trial, (of, step) = next(iter(copies.items()))
        lines.append(
            f"{len(copies)} trials are copies that go on from another (trial {trial} from {of} at step {step})"
        )
    if tree["branches"]:
        lines.append(f"Branches that are still to be trained: {', '.join(tree['branches'])}")
    if tree["stopped"]:
        lines.append(f"No further trials: {tree['stopped']}")
    return lines
