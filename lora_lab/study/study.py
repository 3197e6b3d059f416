"""Ask, hand out, report, settle: the life of a sweep's trials and runs, shared by any number of workers.

A trial is one point of the space; it has a run for each seed. What happens is an event in the study's log
(:mod:`.log`), in one order for all workers, and counts from the moment it is durable there. Everything else follows
from the log and is caught up with on the next open: ``runs/<id>/result.json``, and the trials in Optuna's storage.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from lora_lab.errors import LoraLabError
from lora_lab.spec import (
    FIRST_BRANCH,
    SETTLED,
    EvalMetrics,
    Execution,
    Figures,
    LauncherSpec,
    Order,
    Outcome,
    RunResult,
    RunSpec,
    Sweep,
    Verdict,
    pairs,
    run_id,
)
from lora_lab.spec.prefix import staged
from lora_lab.study import opening, rules
from lora_lab.study.branches import branch_key, branch_point, branch_spec, key_of, spec_of
from lora_lab.study.folder import SweepFolder
from lora_lab.study.keeper import Keeper
from lora_lab.study.lease import Lease, new_name, this_process
from lora_lab.study.log import Unreachable
from lora_lab.study.mirror import Mirror
from lora_lab.study.parameters import decode
from lora_lab.study.population import another_optimizer
from lora_lab.study.session import Session
from lora_lab.study.stages import Stages
from lora_lab.study.state import SHARED, Cause, RunState, TrialState, failure
from lora_lab.study.steering import Hopeless, Steering
from lora_lab.study.verdict import front, value_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One training to do: trial number, seed, the trial's point and the spec made of them.

    ``key`` is the experiment's. ``alone``: it must not share its pack. ``halvings``: how often its micro-batch is to
    be halved. ``parent``: the run from whose checkpoint it begins (at ``parent_step``, where that is settled), with
    ``fresh_optimizer`` without its optimizer's state. ``stage``: the run whose beginning is its own too, and from whose
    stem it goes on; ``stem``: others may do so with its own. ``attempt`` counts from 1. ``claim`` is what entitles its
    holder to settle it.
    """

    trial: int
    seed: int
    id: str
    point: dict[str, Any]
    spec: RunSpec
    key: str = ""
    parent: str | None = None
    parent_step: int | None = field(default=None, compare=False)
    fresh_optimizer: bool = field(default=False, compare=False)
    alone: bool = field(default=False, compare=False)
    halvings: int = field(default=0, compare=False)
    attempt: int = field(default=1, compare=False)
    claim: int = field(default=-1, compare=False)
    stage: str | None = field(default=None, compare=False)
    stem: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Counts:
    """How far a sweep is. ``runs`` are settled, ``running`` handed out to ``workers``; ``refused`` trials had a point
    that no run accepts and were never trained. ``planned_runs`` leaves those out. ``halted`` says why nothing is
    handed out any more, if so; ``stopped`` which stop rule holds."""

    trials: int
    planned_trials: int
    runs: int
    planned_runs: int
    by_outcome: dict[str, int]
    running: int
    refused: int = 0
    workers: int = 0
    halted: str | None = None
    stopped: str | None = None


class Study:
    """A sweep's trials and runs, durable, for one of its workers. Methods may be called from several threads.

    Make one with :meth:`open` or :meth:`join`; close it, or use it as a context manager.
    """

    def __init__(
        self,
        sweep: Sweep,
        folder: SweepFolder,
        session: Session,
        mirror: Mirror,
        name: str,
        launcher: LauncherSpec,
        figures: Figures | None = None,
        hopeless: Hopeless | None = None,
    ) -> None:
        """Use :meth:`open`."""
        self._steering = Steering(sweep, session, figures, hopeless)
        self._stages = Stages(lambda: session.state, lambda run: self._run(run).spec) if staged(sweep) else None
        self.sweep = sweep
        self.folder = folder.path
        self.name = name
        self._folder = folder
        self._session = session
        self._launcher = launcher
        self._held: dict[str, Run] = {}
        self._twins: dict[str, set[str]] = {}
        self._orders: Mapping[str, Order] = {}
        self._lease: Lease | None = None
        self._nothing = (-1, False)
        """How far the log was, and for what company, when there was nothing to hand out: until there is news."""
        self._keeper = Keeper(session, mirror, name, launcher.lease_seconds, self._look)

    @staticmethod
    def open(
        sweep: Sweep, execution: Execution, figures: Figures | None = None, hopeless: Hopeless | None = None
    ) -> Study:
        """Create the study of ``sweep`` in ``execution.folder``, or go on with it, beside whoever works on it.

        ``sweep.trials`` and ``sweep.repeats`` may be other than last time; everything else must be the same.
        A sweep that was cancelled, or stopped after equal failures, goes on. ``figures`` predicts what constraints
        (and pruners, with several objectives) want to know of a run; ``hopeless`` says why one cannot be trained here,
        and so is refused.

        Raises:
            SpecError: the sampler, the pruner or one of their options is unknown.
            SweepFolderError: the folder cannot be written, is full, or belongs to another sweep (the differences are
                listed).
            StorageError: the storage cannot be reached or read.
            CheckpointError: a ``result.json`` is torn and the log has no copy of it.
        """
        return Study(*opening.open_study(sweep, execution), execution.launcher, figures, hopeless)

    @staticmethod
    def join(
        folder: Path,
        storage: str | None,
        name: str | None,
        launcher: LauncherSpec,
        figures: Figures | None = None,
        hopeless: Hopeless | None = None,
        *,
        allow_code: bool = False,
    ) -> Study:
        """Work on the study that is in ``folder`` or, by ``name``, in ``storage``.

        Raises:
            SweepFolderError: there is none, or the folder cannot be written.
            StorageError: the storage cannot be reached or read.
        """
        return Study(*opening.join_study(folder, storage, name, allow_code), launcher, figures, hopeless)

    def close(self) -> None:
        """End as a worker: what it holds goes back into the queue. Nothing else is pending: every call is durable."""
        self._keeper.stop()
        with self._session.lock:
            if self._lease is not None:
                lease, self._lease = self._lease, None
                lease.end()
                with contextlib.suppress(Unreachable, LoraLabError):  # then the lease lapses
                    self._session.transact(lambda: self._leave(lease.worker), patience=0.0)
                    self._session.log.forget(lease.worker)
            self._held.clear()
            self._keeper.close()
            self._session.log.close()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # What comes next

    def next_run(self, *, company: bool = False) -> Run | None:
        """The next run to train; ``None`` when nothing can be handed out now.

        Unsettled runs of trials already asked come first, by trial and seed; then a new trial is asked. A run
        whose key is settled already gets a copy of that result; one whose key is being trained waits for it. Towards
        the end no worker is given more than its share. So ``None`` does not mean the end: see :meth:`waiting`.
        ``company``: the run would train beside others; what is to be trained alone is kept back then.
        """
        with self._session.lock:
            if (self._session.state.count, company) == self._nothing or (self._lease is None and not self.waiting()):
                return None
            worker = self._worker()
            run, settled = self._session.transact(lambda: self._next(worker, company))
            self._store(settled)
            if run is not None:
                self._held[run.id] = run
            elif worker in self._session.state.lapsed:
                return self.next_run(company=company)
            else:
                self._nothing = (self._session.state.count, company)
            return run

    def waiting(self) -> bool:
        """True while there may be something to do later: runs are with other workers, or due to be looked at."""
        self._refresh()
        state = self._session.state
        return state.halted is None and (
            self._steering.left() > 0 or self._steering.unasked() > 0 or bool(self._steering.round())
        )

    def put_back(self, run: Run) -> None:
        """``run`` was interrupted: it is handed out again later, in its old place."""
        with self._session.lock:
            self._held.pop(run.id, None)
            self._session.transact(lambda: self._back(run, Cause.PREEMPTED))

    def pause(self, run: Run, result: RunResult) -> None:
        """``run`` is paused at a rung, and saved: it is handed out again if it is promoted, or else settled with
        ``result`` (PRUNED) in the end."""
        with self._session.lock:
            self._held.pop(run.id, None)
            self._session.transact(lambda: self._pause(run, result))

    def try_again(self, run: Run, outcome: Outcome, *, company: bool) -> bool:
        """Whether a run that ended OUT_OF_MEMORY or FAILED is to be tried in another way; it is in the queue then.

        ``company``: other lanes trained beside it.
        """
        with self._session.lock:
            self._held.pop(run.id, None)
            return self._session.transact(lambda: self._again(run, outcome, company))

    def report(self, run: Run, metrics: EvalMetrics) -> Verdict:
        """Tell the pruner of an evaluation; STOP when the trial is not worth going on with.

        A trial's value at a step is the mean over its runs, known once all of them have reported that step.
        The untrained model (step 0), branches, and losses that are not finite are not judged.
        """
        if self.sweep.pruner.name == "none" or run.trial >= FIRST_BRANCH:
            return Verdict.CONTINUE
        if metrics.step <= 0 or not math.isfinite(metrics.loss):
            return Verdict.CONTINUE
        return self._session.transact(lambda: self._report(run, metrics))

    def orders(self) -> Mapping[str, Order]:
        """What is to be done with held runs; cheap. A run that is somebody else's by now is to be dropped."""
        if self._lease is not None and self._lease.doubtful and self._held:
            with self._session.lock, contextlib.suppress(Unreachable):
                self._session.sync()
                self._look()
                self._lease.renewed()
        return self._orders

    def saved(self, run: Run, step: int) -> None:
        """The run's checkpoint at ``step`` was asked for and is there."""
        with self._session.lock:
            self._session.transact(lambda: self._saved(run, step))
            self._look()

    # What came out

    def settle(self, run: Run, result: RunResult) -> bool:
        """Settle ``run`` with ``result``, durably and once; ``False`` (and nothing changed) if it was settled before,
        or is somebody else's by now.

        Runs that waited for the same key are settled with it.

        Raises:
            ValueError: ``result`` is of another run, or PREEMPTED (see :meth:`put_back`).
            SweepFolderError: no space left, or no permission; the run is not settled.
        """
        if result.run != run.id or result.key != run.key:
            raise ValueError(f"the result of {result.run} (key {result.key[:12]}) cannot settle {run.id}")
        if result.outcome not in SETTLED:
            raise ValueError(f"{run.id}: {result.outcome} does not settle a run; put it back")
        with self._session.lock:
            settled = self._session.transact(lambda: self._settle(run, result))
            self._held.pop(run.id, None)
            self._store(settled)
            return bool(settled)

    def results(self) -> list[RunResult]:
        """All settled results, by trial and seed."""
        with self._session.lock:
            return sorted(self._session.state.results.values(), key=lambda result: (result.trial, result.seed))

    def settled(self) -> int:
        """How many runs are settled, as far as this worker has heard."""
        return len(self._session.state.results)

    def counts(self) -> Counts:
        """How far the sweep is."""
        with self._session.lock:
            self._refresh()
            state = self._session.state
            refused = sum(trial.refused is not None for trial in state.trials.values())
            planned = state.asked + self._steering.unasked()
            wanted = sum(len(state.seeds_of(trial)) for trial in state.trials.values())
            extra = sum(result.seed not in state.seeds_of(state.trials[result.trial]) for result in self.results())
            unasked = self._steering.unasked() * self.sweep.repeats
            return Counts(
                trials=state.asked,
                planned_trials=planned,
                runs=len(state.results),
                planned_runs=wanted + extra + unasked + len(self._steering.round()),
                by_outcome=dict(Counter(str(result.outcome) for result in self.results())),
                running=state.held(),
                refused=refused,
                workers=len(state.workers),
                halted=state.halted,
                stopped=state.stopped,
            )

    def best(self) -> tuple[int, dict[str, Any], float] | None:
        """Number, point and objective of the best trial (the first of the :meth:`front`); ``None`` if there is none."""
        found = self.front()
        return (found[0][0], found[0][1], found[0][2][0]) if found else None

    def front(self) -> list[tuple[int, dict[str, Any], list[float]]]:
        """Number, point and objectives of the trials that no other beats in everything, by the first objective.

        Only trials whose runs are all settled count, and of them only those that were not pruned and did not
        diverge with any seed. Branches are not compared. With one objective it is the best trial alone.
        """
        with self._session.lock:
            state, targets = self._session.state, self.sweep.targets
            done: list[tuple[int, list[float]]] = []
            for number, trial in state.trials.items():
                if trial.seed is None and trial.refused is None and (results := state.so_far(number)) is not None:
                    values = [value_of(results, objective) for objective in targets]
                    known = [value for value in values if value is not None]
                    done += [(number, known)] if len(known) == len(values) else []
            best = [done[place] for place in front([values for _, values in done], targets)]
            best.sort(key=lambda item: (targets[0].sign * item[1][0], item[0]))
            return [(n, self._point(state.trials[n]), v) for n, v in (best if len(targets) > 1 else best[:1])]

    # Within a transaction

    def _next(self, worker: str, company: bool) -> tuple[Run | None, list[RunResult]]:
        """The next run for ``worker``, and the results that came of looking for it."""
        state = self._session.state
        settled: list[RunResult] = []
        if state.halted is not None or worker in state.lapsed:
            return None, settled
        while True:
            if not self._wants_more(worker):
                return None, settled
            with contextlib.closing(state.queue()) as queue:
                for waiting in queue:
                    if company and _alone(waiting):
                        continue
                    if (run := self._try(waiting, worker, settled)) is not None:
                        return run, settled
            if not self._steering.steer(settled):
                return None, settled

    def _wants_more(self, worker: str) -> bool:
        """Towards the end, every worker holds its share of what is left and no more."""
        state = self._session.state
        mine = len(state.workers[worker].runs) if worker in state.workers else 0
        workers = len(state.workers)
        if workers == 1 or mine == 0:
            return True
        left = self._steering.left() + self._steering.unasked() * len(state.seeds)
        return mine < math.ceil(left / workers)

    def _try(self, waiting: RunState, worker: str, settled: list[RunResult]) -> Run | None:
        """Hand a run out, unless it need not be trained or must wait for its twin."""
        session, state = self._session, self._session.state
        run = self._run(waiting)
        if (twin := state.by_key.get(run.key) or state.taken.get(run.key)) is not None:
            settled.append(self._settle_as(run, twin))
            return None
        if run.key in state.out:
            self._twins.setdefault(run.key, set()).add(run.id)
            return None
        if (why := rules.lost_too_often(waiting)) is not None:
            result = self._without_training(run, Outcome.FAILED, why)
            session.do("settle", run=run.id, result=result.to_tree())
            settled.append(result)
            return None
        if worker not in state.workers:
            session.do("join", worker=worker, lease=self._launcher.lease_seconds, process=this_process())
        if self._stages is not None:
            wait, stage = self._stages.before(waiting)
            if wait:
                return None
            run = replace(run, stage=stage, stem=True)
        session.do("claim", worker=worker, run=run.id, key=run.key)
        assert waiting.claim is not None
        return replace(run, claim=waiting.claim, attempt=waiting.attempts)

    def _back(self, run: Run, cause: Cause, **how: Any) -> None:
        if self._mine(run):
            self._session.do("back", run=run.id, cause=cause, **how)

    def _pause(self, run: Run, result: RunResult) -> None:
        if self._mine(run):
            self._session.do("pause", run=run.id, result=result.to_tree())

    def _again(self, run: Run, outcome: Outcome, company: bool) -> bool:
        if not self._mine(run):
            return True  # somebody else tries already
        how = rules.again(self._session.state.runs[run.id], run.spec, outcome, company)
        if how is None:
            self._held[run.id] = run
            return False
        self._back(run, how.cause, alone=how.alone, halvings=how.halvings)
        return True

    def _report(self, run: Run, metrics: EvalMetrics) -> Verdict:
        session = self._session
        trial = session.state.trials[run.trial]
        if not self._mine(run):
            return Verdict.CONTINUE
        if trial.pruned_at is not None:
            return Verdict.STOP
        session.do("report", run=run.id, step=metrics.step, loss=metrics.loss)
        return session.shadow.judge.verdict(run.trial, run.seed, metrics.step, session.do)

    def _saved(self, run: Run, step: int) -> None:
        if self._mine(run):
            self._session.do("saved", run=run.id, step=step)

    def _settle(self, run: Run, result: RunResult) -> list[RunResult]:
        session, state = self._session, self._session.state
        if not self._mine(run):
            holder = state.runs[run.id].holder
            what = "settled already" if state.runs[run.id].result else f"no longer held ({holder or 'nobody'} holds it)"
            log.warning("%s is %s; a late result (%s) is refused.", run.id, what, result.outcome)
            session.do("late", run=run.id, worker=session.name, outcome=str(result.outcome))
            return []
        session.do("settle", run=run.id, result=result.to_tree())
        settled = [result]
        for name in sorted(self._twins.pop(run.key, ())):
            if result.outcome in SHARED and state.runs[name].queued:
                settled.append(self._settle_as(self._run(state.runs[name]), result))
        if result.outcome is Outcome.FAILED and state.halted is None:
            alike = state.failures[failure(result.message)]
            if alike >= self._launcher.equal_failures:
                session.do("halt", message=f"{alike} runs failed with the same error: {_last_line(result.message)}")
        return settled

    def _settle_as(self, run: Run, twin: RunResult) -> RunResult:
        """Settle a run with a copy of the result of the same experiment."""
        copy = replace(
            twin,
            run=run.id,
            trial=run.trial,
            seed=run.seed,
            point=pairs(run.point),
            message=f"same experiment as {twin.message if twin.key in self._session.state.taken else twin.run}",
        )
        self._session.do("settle", run=run.id, result=copy.to_tree())
        return copy

    def _leave(self, worker: str) -> None:
        if worker in self._session.state.workers:
            self._session.do("leave", worker=worker)

    def _mine(self, run: Run) -> bool:
        held = self._session.state.runs[run.id]
        return self._lease is not None and held.holder == self._lease.worker and held.claim == run.claim

    # Beside the log

    def _worker(self) -> str:
        """This worker's name, with a lease that runs; a new one when others took it for dead."""
        if self._lease is not None and self._lease.worker in self._session.state.lapsed:
            log.warning("%s was taken for dead and goes on under a new name.", self._lease.worker)
            self._lease.end()
            self._lease = None
        if self._lease is None:
            self._lease = self._session.patiently(
                lambda: Lease(self._session.log, new_name(), self._launcher.lease_seconds)
            )
            self._keeper.start(self._lease.worker)
        return self._lease.worker

    def _run(self, run: RunState) -> Run:
        state = self._session.state
        trial = state.trials[run.trial]
        if trial.parent is None:
            point = self._point(trial)
            spec = self.sweep.spec_of(point, run.seed)
            key = spec.key
        else:
            point = branch_point(state, self.sweep, trial)
            spec = branch_spec(state, self.sweep, trial)
            key = branch_key(state, self.sweep, trial)
        parent, parent_step, fresh = trial.parent, None, any(path == "optimizer.name" for path in trial.overrides)
        if trial.origin is not None:
            of, parent_step = trial.origin
            before = state.runs[run_id(of, run.seed)]
            parent, key = before.id, key_of(state, self.sweep, run)
            fresh = another_optimizer(spec_of(state, self.sweep, before), spec)
        return Run(
            run.trial,
            run.seed,
            run.id,
            point,
            spec,
            key=key,
            parent=parent,
            parent_step=parent_step,
            fresh_optimizer=fresh,
            alone=_alone(run),
            halvings=run.halvings,
        )

    def _point(self, trial: TrialState) -> dict[str, Any]:
        return decode(self.sweep.space, trial.params)

    def _without_training(self, run: Run, outcome: Outcome, message: str) -> RunResult:
        return RunResult(
            run=run.id,
            trial=run.trial,
            seed=run.seed,
            key=run.key,
            outcome=outcome,
            point=pairs(run.point),
            message=message,
            parent=run.parent,
        )

    def _store(self, results: list[RunResult]) -> None:
        for result in results:
            self._folder.store_result(result)

    def _refresh(self) -> None:
        with self._session.lock, contextlib.suppress(Unreachable):
            self._session.sync()

    def _look(self) -> None:
        """See what others want of the held runs, and which of them were lost."""
        with self._session.lock:
            orders: dict[str, Order] = {}
            for name, run in self._held.items():
                wish = self._session.state.runs[name].order
                if not self._mine(run):
                    orders[name] = Order.DROP
                elif wish is not None:
                    orders[name] = Order(wish)
                elif self._session.state.halted is not None:
                    orders[name] = Order.PARK
            self._orders = orders


def _alone(run: RunState) -> bool:
    return run.alone or run.back[Cause.LOST] >= rules.LOST_ALONE


def _last_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return lines[-1] if lines else "(no message)"
