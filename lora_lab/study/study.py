"""Ask, hand out, report, settle: the life of a sweep's trials and runs, shared by any number of workers.

A trial is one point of the space; it has a run for each seed. What happens is an event in the study's log
(:mod:`.log`), in one order for all workers, and counts from the moment it is durable there. Everything else follows
from the log and is caught up with on the next open: ``runs/<id>/result.json``, and the trials in Optuna's storage.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
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
    Sweep,
    Verdict,
)
from lora_lab.study import opening
from lora_lab.study.counts import Counts, best_trials, counts_of
from lora_lab.study.desk import Desk
from lora_lab.study.entries import Cause
from lora_lab.study.folder import SweepFolder
from lora_lab.study.keeper import Keeper
from lora_lab.study.lease import Lease, new_name
from lora_lab.study.log import Unreachable
from lora_lab.study.mirror import Mirror
from lora_lab.study.run import Run
from lora_lab.study.session import Session
from lora_lab.study.steering import Hopeless, Steering

log = logging.getLogger(__name__)


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
        self._desk = Desk(sweep, session, self._steering, launcher)
        self.sweep = sweep
        self.folder = folder.path
        self.name = name
        self._folder = folder
        self._session = session
        self._launcher = launcher
        self._held: dict[str, Run] = {}
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
                    self._session.transact(self._desk.leave, patience=0.0)
                    self._session.log.forget(lease.worker)
                self._desk.worker = None
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
            run, settled = self._session.transact(lambda: self._desk.next(company))
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
            self._session.transact(lambda: self._desk.back(run, Cause.PREEMPTED))

    def pause(self, run: Run, result: RunResult) -> None:
        """``run`` is paused at a rung, and saved: it is handed out again if it is promoted, or else settled with
        ``result`` (PRUNED) in the end."""
        with self._session.lock:
            self._held.pop(run.id, None)
            self._session.transact(lambda: self._desk.pause(run, result))

    def try_again(self, run: Run, outcome: Outcome, *, company: bool) -> bool:
        """Whether a run that ended OUT_OF_MEMORY or FAILED is to be tried in another way; it is in the queue then.

        ``company``: other lanes trained beside it.
        """
        with self._session.lock:
            again = self._session.transact(lambda: self._desk.again(run, outcome, company))
            if again:
                self._held.pop(run.id, None)
            return again

    def report(self, run: Run, metrics: EvalMetrics) -> Verdict:
        """Tell the pruner of an evaluation; STOP when the trial is not worth going on with.

        A trial's value at a step is the mean over its runs, known once all of them have reported that step.
        The untrained model (step 0), branches, and losses that are not finite are not judged.
        """
        if self.sweep.pruner.name == "none" or run.trial >= FIRST_BRANCH:
            return Verdict.CONTINUE
        if metrics.step <= 0 or not math.isfinite(metrics.loss):
            return Verdict.CONTINUE
        return self._session.transact(lambda: self._desk.report(run, metrics))

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
            self._session.transact(lambda: self._desk.saved(run, step))
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
            settled = self._session.transact(lambda: self._desk.settle(run, result))
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
            return counts_of(self._session.state, self.sweep, self._steering)

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
            return best_trials(self._session.state, self.sweep)

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
            self._desk.worker = self._lease.worker
            self._keeper.start(self._lease.worker)
        return self._lease.worker

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
                if not self._desk.mine(run):
                    orders[name] = Order.DROP
                elif wish is not None:
                    orders[name] = Order(wish)
                elif self._session.state.halted is not None:
                    orders[name] = Order.PARK
            self._orders = orders
