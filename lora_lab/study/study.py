"""Ask, hand out, report, settle: the life of a sweep's trials and runs.

A trial is one point of the space; it has a run for each seed. What is settled is written in three
places, in this order, and a process that dies between any two of them is caught up with on the next open:

1. ``runs/<id>/result.json``, durable: from here on the run is settled;
2. the result as a user attribute of the Optuna trial, so that the storage alone can restore the folder;
3. ``tell``, once all runs of the trial are settled.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from lora_lab.errors import CheckpointError, SpecError, SweepFolderError
from lora_lab.spec import (
    SETTLED,
    EvalMetrics,
    Execution,
    Outcome,
    RunResult,
    RunSpec,
    Sweep,
    Verdict,
    pairs,
    run_id,
    thaw,
)
from lora_lab.study.folder import SweepFolder, same_sweep
from lora_lab.study.parameters import decode, distributions, encode
from lora_lab.study.storage import close_storage, open_storage, reachable
from lora_lab.study.strategies import pruner_of, sampler_of
from lora_lab.study.verdict import mean_objective, verdict

SHARED = frozenset({Outcome.COMPLETED, Outcome.PRUNED, Outcome.DIVERGED})
"""Outcomes that belong to the experiment itself, so that an equal key has them too. (The others depend on
the machine and the company: such a run is tried again under its other name.)"""

SWEEP_ATTR = "lora_lab.sweep"
REFUSED_ATTR = "lora_lab.refused"
PRUNED_ATTR = "lora_lab.pruned_at"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One training to do: trial number, seed, the trial's point and the spec made of them."""

    trial: int
    seed: int
    id: str
    point: dict[str, Any]
    spec: RunSpec


@dataclass(frozen=True)
class Counts:
    """How far a sweep is. ``runs`` are settled, ``running`` handed out; ``refused`` trials had a point that
    no run accepts and were never trained. ``planned_runs`` leaves those out."""

    trials: int
    planned_trials: int
    runs: int
    planned_runs: int
    by_outcome: dict[str, int]
    running: int
    refused: int = 0


@dataclass
class _Trial:
    """What this process knows of one Optuna trial. ``values`` holds, by step, the loss that each seed reported."""

    number: int
    id: int
    point: dict[str, Any]
    finished: bool = False
    refused: str | None = None
    pruned_at: int | None = None
    values: dict[int, dict[int, float]] = field(default_factory=dict)


class Study:
    """A sweep's trials and runs, durable. Methods may be called from several threads of one process.

    Make one with :meth:`open`; close it, or use it as a context manager.
    """

    def __init__(
        self, sweep: Sweep, folder: SweepFolder, storage: BaseStorage, study: optuna.Study, url: str | None
    ) -> None:
        """Use :meth:`open`."""
        self.sweep = sweep
        self.folder = folder.path
        self._folder = folder
        self._storage = storage
        self._url = url
        self._study = study
        self._distributions = distributions(sweep.space)
        self._lock = threading.RLock()
        self._trials: dict[int, _Trial] = {}
        self._results: dict[str, RunResult] = {}
        self._by_key: dict[str, RunResult] = {}
        self._pending: list[tuple[int, int]] = []
        self._running: dict[str, Run] = {}
        self._twins: dict[str, list[Run]] = {}

    @staticmethod
    def open(sweep: Sweep, execution: Execution) -> Study:
        """Create the study of ``sweep`` in ``execution.folder``, or go on with it.

        ``sweep.trials`` and ``sweep.repeats`` may be other than last time; everything else must be the same.

        Raises:
            SpecError: the sampler, the pruner or one of their options is unknown.
            SweepFolderError: the folder cannot be written, is full, is being worked in, or belongs to another
                sweep (the differences are listed).
            StorageError: the storage cannot be reached or read.
            CheckpointError: a ``result.json`` is torn and the storage has no copy of it.
        """
        sampler, pruner = sampler_of(sweep), pruner_of(sweep)
        folder = SweepFolder(Path(execution.folder))
        storage: BaseStorage | None = None
        try:
            stored = folder.stored_sweep()
            if stored is not None:
                same_sweep(sweep, stored, str(folder.path))
            storage = open_storage(execution.storage, folder.path)
            with reachable(execution.storage):
                names = optuna.get_all_study_names(storage)
                # A journal is the sweep's own and keeps its first name when the sweep is renamed.
                name = names[0] if execution.storage is None and names else sweep.name
                if name in names:
                    study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
                else:
                    study = optuna.create_study(
                        storage=storage,
                        study_name=name,
                        direction=StudyDirection[sweep.objective.direction.upper()],
                        sampler=sampler,
                        pruner=pruner,
                        load_if_exists=True,
                    )
                known = study.user_attrs.get(SWEEP_ATTR)
                if known is not None:
                    same_sweep(sweep, known, f"study '{name}' in the storage")
                elif study.get_trials(deepcopy=False):
                    raise SweepFolderError(
                        f"study '{name}' in the storage was not made by lora-lab; "
                        "choose another name with sweep.name=NAME."
                    )
                else:
                    study.set_user_attr(SWEEP_ATTR, {**sweep.to_tree(), "key": sweep.key})
                if (first := known or stored) is not None:
                    # Equal keys may differ in the order of the space, which numbers the grid: the first order stays.
                    sweep = replace(sweep, space=Sweep.from_tree(first).space)
                    study.sampler = sampler_of(sweep)
                folder.store_sweep(sweep)
                opened = Study(sweep, folder, storage, study, execution.storage)
                opened._catch_up()
            return opened
        except BaseException:
            if storage is not None:
                close_storage(storage)
            folder.release()
            raise

    def close(self) -> None:
        """Give the folder and the storage's connections back. Nothing is pending: every call is durable."""
        with self._lock:
            close_storage(self._storage)
            self._folder.release()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # What comes next

    def next_run(self) -> Run | None:
        """The next run to train; ``None`` when nothing can be handed out now.

        Unsettled runs of trials already asked come first, by trial and seed; then a new trial is asked. A run
        whose key is settled already gets a copy of that result; one whose key is being trained waits for it. So
        ``None`` with runs still out does not mean the end: ask again when one of them is settled or put back.
        """
        with self._lock, reachable(self._url):
            while True:
                if not self._pending:
                    if len(self._trials) >= self.sweep.planned_trials:
                        return None
                    self._ask()
                    continue
                trial, seed = heapq.heappop(self._pending)
                run = self._run(self._trials[trial], seed)
                twin = self._by_key.get(run.spec.key)
                if twin is not None:
                    self._settle_as(run, twin)
                elif any(other.spec.key == run.spec.key for other in self._running.values()):
                    self._twins.setdefault(run.spec.key, []).append(run)
                else:
                    self._running[run.id] = run
                    return run

    def put_back(self, run: Run) -> None:
        """``run`` was interrupted: it is handed out again later, in its old place."""
        with self._lock:
            if self._running.pop(run.id, None) is not None:
                heapq.heappush(self._pending, (run.trial, run.seed))
                self._return_twins(run.spec.key)

    def report(self, run: Run, metrics: EvalMetrics) -> Verdict:
        """Tell the pruner of an evaluation; STOP when the trial is not worth going on with.

        A trial's value at a step is the mean over its runs, known once all of them have reported that step.
        The untrained model (step 0) and losses that are not finite are not judged.
        """
        with self._lock, reachable(self._url):
            if self.sweep.pruner.name == "none" or metrics.step <= 0 or not math.isfinite(metrics.loss):
                return Verdict.CONTINUE
            trial = self._trials[run.trial]
            if trial.finished:
                return Verdict.CONTINUE
            if trial.pruned_at is not None:
                return Verdict.STOP
            trial.values.setdefault(metrics.step, {})[run.seed] = metrics.loss
            mine = {str(step): by_seed[run.seed] for step, by_seed in trial.values.items() if run.seed in by_seed}
            self._storage.set_trial_user_attr(trial.id, f"lora_lab.losses.s{run.seed}", mine)
            values = [trial.values[metrics.step].get(seed) for seed in self.sweep.seeds]
            losses = [value for value in values if value is not None]
            if len(losses) < len(values):
                return Verdict.CONTINUE
            self._storage.set_trial_intermediate_value(trial.id, metrics.step, sum(losses) / len(losses))
            if not self._study.pruner.prune(self._study, self._storage.get_trial(trial.id)):
                return Verdict.CONTINUE
            self._storage.set_trial_user_attr(trial.id, PRUNED_ATTR, metrics.step)
            trial.pruned_at = metrics.step
            return Verdict.STOP

    # What came out

    def settle(self, run: Run, result: RunResult) -> bool:
        """Settle ``run`` with ``result``, durably and once; ``False`` (and nothing changed) if it was settled before.

        Runs that waited for the same key are settled with it.

        Raises:
            ValueError: ``result`` is of another run, or PREEMPTED (see :meth:`put_back`).
            SweepFolderError: no space left, or no permission; the run is not settled.
        """
        if result.run != run.id or result.key != run.spec.key:
            raise ValueError(f"the result of {result.run} (key {result.key[:12]}) cannot settle {run.id}")
        if result.outcome not in SETTLED:
            raise ValueError(f"{run.id}: {result.outcome} does not settle a run; put it back")
        with self._lock, reachable(self._url):
            if run.id in self._results or self._folder.has_result(run.id):
                log.warning("%s is settled already; a second result (%s) is refused.", run.id, result.outcome)
                self._running.pop(run.id, None)
                return False
            self._settle(run, result)
            for twin in self._twins.pop(run.spec.key, []):
                if result.outcome in SHARED:
                    self._settle_as(twin, result)
                else:
                    heapq.heappush(self._pending, (twin.trial, twin.seed))
            return True

    def results(self) -> list[RunResult]:
        """All settled results, by trial and seed."""
        with self._lock:
            return sorted(self._results.values(), key=lambda result: (result.trial, result.seed))

    def counts(self) -> Counts:
        """How far the sweep is."""
        with self._lock:
            refused = sum(trial.refused is not None for trial in self._trials.values())
            planned = max(self.sweep.planned_trials, len(self._trials))
            unsettled = sum(run_id(n, s) not in self._results for n in self._wanted() for s in self.sweep.seeds)
            unasked = (planned - len(self._trials)) * self.sweep.repeats
            return Counts(
                trials=len(self._trials),
                planned_trials=planned,
                runs=len(self._results),
                planned_runs=len(self._results) + unsettled + unasked,
                by_outcome=dict(Counter(str(result.outcome) for result in self.results())),
                running=len(self._running),
                refused=refused,
            )

    def best(self) -> tuple[int, dict[str, Any], float] | None:
        """Number, point and mean objective of the best trial; ``None`` if there is none yet.

        Only trials whose runs are all settled count, and of them only those that were not pruned and did not
        diverge with any seed.
        """
        with self._lock:
            settled = [(n, results) for n in self._trials if (results := self._outcomes(n)) is not None]
            values = [(n, mean_objective(results, self.sweep.objective)) for n, results in settled]
            done = [(n, value) for n, value in values if value is not None]
            if not done:
                return None
            sign = 1 if self.sweep.objective.direction == "minimize" else -1
            number, value = min(done, key=lambda item: (sign * item[1], item[0]))
            return number, dict(self._trials[number].point), value

    # Inside

    def _ask(self) -> None:
        trial = self._study.ask(self._distributions)
        self._add(self._storage.get_trial(trial._trial_id))

    def _add(self, frozen: FrozenTrial) -> _Trial:
        """Take a fully asked trial in; refuse it if no run accepts its point."""
        trial = _Trial(
            number=frozen.number,
            id=frozen._trial_id,
            point=decode(self.sweep.space, frozen.params),
            finished=frozen.state.is_finished(),
            refused=frozen.user_attrs.get(REFUSED_ATTR),
            pruned_at=frozen.user_attrs.get(PRUNED_ATTR),
        )
        for seed in self.sweep.seeds:
            for step, loss in frozen.user_attrs.get(f"lora_lab.losses.s{seed}", {}).items():
                trial.values.setdefault(int(step), {})[seed] = loss
        self._trials[trial.number] = trial
        if trial.refused is None:
            try:
                self.sweep.spec_of(trial.point, self.sweep.seeds[0])
            except SpecError as error:
                log.warning("trial %d is refused: %s", trial.number, error)
                trial.refused = str(error)
                self._storage.set_trial_user_attr(trial.id, REFUSED_ATTR, trial.refused)
        if trial.refused is not None:
            self._tell(trial, TrialState.FAIL)
        else:
            for seed in self.sweep.seeds:
                if run_id(trial.number, seed) not in self._results:
                    heapq.heappush(self._pending, (trial.number, seed))
        return trial

    def _run(self, trial: _Trial, seed: int) -> Run:
        spec = self.sweep.spec_of(trial.point, seed)
        return Run(trial.number, seed, run_id(trial.number, seed), dict(trial.point), spec)

    def _wanted(self) -> Iterable[int]:
        return (n for n, trial in self._trials.items() if trial.refused is None)

    def _return_twins(self, key: str) -> None:
        for twin in self._twins.pop(key, []):
            heapq.heappush(self._pending, (twin.trial, twin.seed))

    def _settle(self, run: Run, result: RunResult) -> None:
        self._folder.store_result(result)
        self._running.pop(run.id, None)
        self._take(result)
        trial = self._trials[run.trial]
        if not trial.finished:
            self._storage.set_trial_user_attr(trial.id, _result_attr(run.seed), result.to_tree())
        self._tell_if_settled(trial)

    def _settle_as(self, run: Run, twin: RunResult) -> None:
        """Settle a run with a copy of the result of the same experiment."""
        copy = replace(
            twin,
            run=run.id,
            trial=run.trial,
            seed=run.seed,
            point=pairs(run.point),
            message=f"same experiment as {twin.run}",
        )
        self._settle(run, copy)

    def _take(self, result: RunResult) -> None:
        self._results[result.run] = result
        if result.outcome in SHARED:
            self._by_key.setdefault(result.key, result)

    def _outcomes(self, number: int) -> list[RunResult] | None:
        """The results of a trial's runs; ``None`` while one is missing."""
        results = [self._results.get(run_id(number, seed)) for seed in self.sweep.seeds]
        return None if None in results else [result for result in results if result is not None]

    def _tell_if_settled(self, trial: _Trial) -> None:
        results = self._outcomes(trial.number)
        if results is None or trial.finished:
            return
        state, value = verdict(results, self.sweep.objective, self._results.values())
        self._tell(trial, state, value)

    def _tell(self, trial: _Trial, state: TrialState, value: float | None = None) -> None:
        if not trial.finished:
            self._study.tell(trial.number, value, state=state, skip_if_finished=True)
            trial.finished = True

    # After a restart

    def _catch_up(self) -> None:
        """Bring memory, folder and storage to the same state, whatever the last process died at."""
        results, torn = self._folder.load_results()
        trials = self._study.get_trials(deepcopy=False)
        for frozen in trials:
            self._restore_from_storage(frozen, results, torn)
        if torn:
            raise next(iter(torn.values()))
        for settled in sorted(results.values(), key=lambda result: (result.trial, result.seed)):
            self._take(settled)
        for frozen in trials:
            if not frozen.state.is_finished() and set(frozen.params) != set(self._distributions):
                self._finish_asking(frozen)
            self._add(self._storage.get_trial(frozen._trial_id))
        self._recreate(results)
        for trial in self._trials.values():
            for seed in self.sweep.seeds:
                if (result := self._results.get(run_id(trial.number, seed))) is None:
                    continue
                if trial.refused is None and result.key != self.sweep.spec_of(trial.point, seed).key:
                    raise CheckpointError(
                        f"{self._folder.result_path(result.run)}: the result of another experiment (key "
                        f"{result.key[:12]}). Move it away to let its run be trained again."
                    )
                if not trial.finished:
                    self._storage.set_trial_user_attr(trial.id, _result_attr(seed), result.to_tree())
            self._tell_if_settled(trial)

    def _finish_asking(self, frozen: FrozenTrial) -> None:
        """Draw the parameters that a process which died while it asked left out."""
        trial = optuna.Trial(self._study, frozen._trial_id)
        for name, distribution in self._distributions.items():
            match distribution:
                case CategoricalDistribution():
                    trial.suggest_categorical(name, distribution.choices)
                case IntDistribution():
                    low, high = distribution.low, distribution.high
                    trial.suggest_int(name, low, high, step=distribution.step, log=distribution.log)
                case FloatDistribution():
                    first, last = distribution.low, distribution.high
                    trial.suggest_float(name, first, last, step=distribution.step, log=distribution.log)

    def _restore_from_storage(
        self, frozen: FrozenTrial, results: dict[str, RunResult], torn: dict[str, CheckpointError]
    ) -> None:
        """Write back results that the storage has and the folder lost."""
        for name, tree in frozen.user_attrs.items():
            if not name.startswith(_result_attr("")):
                continue
            result = RunResult.from_tree(tree)
            if result.run not in results:
                log.warning("%s: lost or torn, restored from the storage.", self._folder.result_path(result.run))
                self._folder.store_result(result)
                results[result.run] = result
                torn.pop(result.run, None)

    def _recreate(self, results: dict[str, RunResult]) -> None:
        """Create the trials that the folder has results of and the storage does not know: it was lost or changed."""
        points = {result.trial: thaw(result.point) for result in results.values()}
        for number in range(max(points, default=-1) + 1):
            if number in self._trials:
                continue
            if number not in points:
                self._ask()
                continue
            params = encode(self.sweep.space, points[number])
            template = create_trial(state=TrialState.RUNNING, params=params, distributions=self._distributions)
            self._study.add_trial(template)
            log.warning("trial %d was missing in the storage; made again from its results.", number)
            self._add(self._study.get_trials(deepcopy=False)[number])


def _result_attr(seed: int | str) -> str:
    return f"lora_lab.result.s{seed}"
