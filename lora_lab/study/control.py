"""What people tell a study while it runs, or afterwards: stop, extend, clone, retry, cancel, free space.

Every word is an event in the log; workers hear it within a second or two. None of these trains or loads anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lora_lab.errors import SpecError, SweepFolderError, nearest
from lora_lab.spec import FIRST_BRANCH, Order, Outcome, RunResult, Sweep, pairs, run_id
from lora_lab.study.branches import branch_point, branch_spec, key_of, spec_of
from lora_lab.study.entries import RunState, TrialState
from lora_lab.study.folder import SweepFolder
from lora_lab.study.log import Unreachable
from lora_lab.study.look import execution_of
from lora_lab.study.opening import open_log
from lora_lab.study.parameters import decode
from lora_lab.study.session import Session
from lora_lab.study.state import CANCELLED
from lora_lab.study.storage import gone
from lora_lab.study.verdict import value_of

RETRIED = (Outcome.FAILED, Outcome.OUT_OF_MEMORY)
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Freed:
    """What :meth:`Control.prune_files` removed, or would: runs and bytes."""

    runs: tuple[str, ...]
    bytes: int


class Control:
    """A study's log, opened to say something; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            SweepFolderError: there is no study in ``folder``.
            StorageError: its storage cannot be reached.
        """
        execution = execution_of(folder)
        if execution["storage"] is None and not (folder / "study.log").exists():
            raise SweepFolderError(f"{folder}: no study there. Begin it with `lora-lab sweep`.")
        self._folder = SweepFolder(folder)
        self._session = Session(open_log(execution["storage"], folder, execution.get("study") or ""), samples=False)
        try:
            self._session.sync()
        except Unreachable as error:
            raise gone(error.url, error.cause) from error
        if self._session.state.sweep is None:
            raise SweepFolderError(f"{folder}: no study there. Begin it with `lora-lab sweep`.")
        tree = self._session.state.sweep
        self.sweep = Sweep.from_tree({name: value for name, value in tree.items() if name != "key"})

    def __enter__(self) -> Control:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._session.log.close()

    def cancel(self) -> int:
        """Nothing is handed out any more, and what trains is saved and put back; returns how many runs train."""
        return self._session.transact(lambda: self._halt(CANCELLED), patience=0.0)

    def retry(self, outcomes: Collection[Outcome] = RETRIED, runs: Collection[str] = ()) -> list[str]:
        """Take results back, so that their runs are trained again: those of ``runs``, or all with ``outcomes``.

        Raises:
            SweepFolderError: no such run, or it has no result.
        """
        for run in runs:
            if self._run(run).result is None:
                raise SweepFolderError(f"{run}: it has no result to take back; it is trained anyway.")
        names = self._session.transact(lambda: self._retry(outcomes, runs), patience=0.0)
        for name in names:
            self._folder.result_path(name).unlink(missing_ok=True)
        return names

    def stop(self, name: str) -> str:
        """End a run where it is, PRUNED; says what happens to it.

        Raises:
            SweepFolderError: no such run, or it is settled.
        """
        self._unsettled(name)
        said, result = self._session.transact(lambda: self._stop(name), patience=0.0)
        if result is not None:
            self._folder.store_result(result)
        return said

    def extend(self, name: str, *, epochs: float | None = None, steps: int | None = None) -> str:
        """Train a run on for so many more epochs or steps, as a branch that begins where it ends; its run id.

        Raises:
            SweepFolderError: no such run, or its last checkpoint is gone.
            SpecError: it is budgeted in the other unit.
        """
        run = self._run(name)
        budget = spec_of(self._session.state, self.sweep, run).budget
        if steps is not None:
            if budget.steps is None:
                raise SpecError(f"{name} is budgeted in epochs ({budget.epochs or 1.0:g}); extend it with --epochs.")
            return self._branch(run, {"budget.steps": budget.steps + steps}, waits="settled")
        if budget.steps is not None:
            raise SpecError(f"{name} is budgeted in steps ({budget.steps}); extend it with --steps.")
        return self._branch(run, {"budget.epochs": (budget.epochs or 1.0) + (epochs or 1.0)}, waits="settled")

    def clone(self, name: str, overrides: Mapping[str, Any]) -> str:
        """Branch off a run where it is now, with other settings; returns the branch's run id.

        Raises:
            SweepFolderError: no such run, or its checkpoint is gone.
            SpecError: the settings change what the checkpoint is of, or contradict each other.
        """
        return self._branch(self._run(name), dict(overrides), waits="saved")

    def prune_files(self, keep: int, *, dry: bool = False) -> Freed:
        """Remove adapters and checkpoints of settled runs, all but those of the ``keep`` best trials.

        Metrics and results stay, and so does what a branch waits for.
        """
        state = self._session.state
        first = self.sweep.targets[0]
        values: list[tuple[float, int]] = []
        for number in state.trials:
            value = value_of(state.so_far(number) or [], first)
            if value is not None:
                values.append((first.sign * value, number))
        best = {number for _, number in sorted(values)[:keep]}
        needed = {result.adapter for result in state.results.values() if result.trial in best}
        waiting = {
            trial.parent
            for trial in state.trials.values()
            if trial.seed is not None and not state.outcomes(trial.number)
        }
        runs, freed = [], 0
        for name, result in sorted(state.results.items()):
            if result.trial in best or name in waiting or f"runs/{name}/adapter" in needed:
                continue
            size = sum(_size(path) for path in self._weights(name))
            if size:
                runs.append(name)
                freed += size
        if runs and not dry:
            self._session.transact(lambda: self._session.do("bare", runs=runs), patience=0.0)
            for name in runs:
                for path in self._weights(name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                self._folder.store_result(self._session.state.results[name])
        return Freed(tuple(runs), freed)

    # -- within a transaction -------------------------------------------------------------------------

    def _halt(self, message: str) -> int:
        if self._session.state.halted is None:
            self._session.do("halt", message=message)
        return self._session.state.held()

    def _retry(self, outcomes: Collection[Outcome], runs: Collection[str]) -> list[str]:
        results = self._session.state.results
        names = [name for name in sorted(results) if (name in runs if runs else results[name].outcome in outcomes)]
        if names:
            self._session.do("retry", runs=names)
        return names

    def _stop(self, name: str) -> tuple[str, RunResult | None]:
        run = self._unsettled(name)
        if run.holder is not None:
            self._session.do("order", run=name, order=Order.STOP.value)
            return f"{name} is trained by {run.holder}, which ends it at its next step", None
        trial = self._session.state.trials[run.trial]
        result = RunResult(
            run=name,
            trial=run.trial,
            seed=run.seed,
            key=key_of(self._session.state, self.sweep, run),
            outcome=Outcome.PRUNED,
            point=pairs(self._point(trial)),
            message="stopped while it was in the queue",
            parent=trial.parent,
        )
        self._session.do("settle", run=name, result=result.to_tree())
        return f"{name} was in the queue and will not be trained", result

    def _branch(self, run: RunState, overrides: dict[str, Any], waits: str) -> str:
        state = self._session.state
        trial = TrialState(FIRST_BRANCH, {}, parent=run.id, overrides=overrides, seed=run.seed)
        spec, parent = branch_spec(state, self.sweep, trial), spec_of(state, self.sweep, run)
        if spec == parent:
            raise SpecError(f"{run.id}: nothing is changed; give settings, e.g. optimizer.lr=1e-4.")
        there = (self._folder.path / "runs" / run.id / CHECKPOINT).exists()
        if run.result is not None and not there:
            raise SweepFolderError(
                f"{run.id}: its last checkpoint is gone (prune-files, or launcher.keep_checkpoints=false, or it ended "
                f"{run.result.outcome}), so nothing can go on from it."
            )
        return self._session.transact(lambda: self._add(run.id, overrides, waits, there), patience=0.0)

    def _add(self, parent: str, overrides: dict[str, Any], waits: str, there: bool) -> str:
        state = self._session.state
        run = state.runs[parent]
        number = max([FIRST_BRANCH - 1, *(trial for trial in state.trials if trial >= FIRST_BRANCH)]) + 1
        settled = run.result is not None or (waits == "saved" and run.holder is None and there)
        self._session.do(
            "branch",
            trial=number,
            seed=run.seed,
            parent=parent,
            overrides=overrides,
            waits=None if settled else waits,
        )
        if waits == "saved" and not settled:
            self._session.do("order", run=parent, order=Order.SAVE.value)
        return run_id(number, run.seed)

    # -- values ---------------------------------------------------------------------------------------

    def _run(self, name: str) -> RunState:
        runs = self._session.state.runs
        if name not in runs:
            raise SweepFolderError(f"no run {name!r} in this sweep{nearest(name, runs)} They are called t0003-s1.")
        return runs[name]

    def _unsettled(self, name: str) -> RunState:
        run = self._run(name)
        if run.result is not None:
            raise SweepFolderError(f"{name}: settled already ({run.result.outcome}).")
        return run

    def _point(self, trial: TrialState) -> dict[str, Any]:
        if trial.parent is None:
            return decode(self.sweep.space, trial.params)
        return branch_point(self._session.state, self.sweep, trial)

    def _weights(self, run: str) -> list[Path]:
        folder = self._folder.path / "runs" / run
        names = ("adapter", "best", CHECKPOINT, "checkpoint.damaged", "stem.safetensors")
        return [folder / name for name in names if (folder / name).exists()]


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
