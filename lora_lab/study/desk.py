"""Where runs are handed out and taken back: what is decided about them while nobody else writes to the log."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import replace
from typing import Any

from lora_lab.spec import EvalMetrics, LauncherSpec, Outcome, RunResult, Sweep, Verdict, pairs
from lora_lab.spec.prefix import staged
from lora_lab.study import rules
from lora_lab.study.entries import Cause, RunState
from lora_lab.study.lease import this_process
from lora_lab.study.run import Run, is_alone, run_of
from lora_lab.study.session import Session
from lora_lab.study.stages import Stages
from lora_lab.study.state import SHARED, failure
from lora_lab.study.steering import Steering

log = logging.getLogger(__name__)


class Desk:
    """Decides for one worker. All but :meth:`mine` is called within :meth:`Session.transact`."""

    def __init__(self, sweep: Sweep, session: Session, steering: Steering, launcher: LauncherSpec) -> None:
        self.worker: str | None = None
        """The name under which this process holds runs, while it has a lease."""
        self._sweep, self._session, self._steering, self._launcher = sweep, session, steering, launcher
        self._stages = Stages(lambda: session.state, lambda run: self._run(run).spec) if staged(sweep) else None
        self._twins: dict[str, set[str]] = {}
        """Runs that wait for another with their key, by that key."""

    def mine(self, run: Run) -> bool:
        """Whether ``run`` is still held by this worker, under the claim it was handed out with."""
        held = self._session.state.runs[run.id]
        return self.worker is not None and held.holder == self.worker and held.claim == run.claim

    def next(self, company: bool) -> tuple[Run | None, list[RunResult]]:
        """The next run for this worker, and the results that came of looking for it."""
        state, worker = self._session.state, self.worker
        assert worker is not None
        settled: list[RunResult] = []
        if state.halted is not None or worker in state.lapsed:
            return None, settled
        while True:
            if not self._wants_more(worker):
                return None, settled
            with contextlib.closing(state.queue()) as queue:
                for waiting in queue:
                    if company and is_alone(waiting):
                        continue
                    if (run := self._try(waiting, worker, settled)) is not None:
                        return run, settled
            if not self._steering.steer(settled):
                return None, settled

    def back(self, run: Run, cause: Cause, **how: Any) -> None:
        """Put a run into the queue again."""
        if self.mine(run):
            self._session.do("back", run=run.id, cause=cause, **how)

    def pause(self, run: Run, result: RunResult) -> None:
        """Put a run aside at a rung; ``result`` settles it if it never goes on."""
        if self.mine(run):
            self._session.do("pause", run=run.id, result=result.to_tree())

    def again(self, run: Run, outcome: Outcome, company: bool) -> bool:
        """Whether a run is in the queue again, to be tried in another way; ``False`` where ``outcome`` is its own."""
        if not self.mine(run):
            return True  # somebody else tries already
        how = rules.again(self._session.state.runs[run.id], run.spec, outcome, company)
        if how is None:
            return False
        self.back(run, how.cause, alone=how.alone, halvings=how.halvings)
        return True

    def report(self, run: Run, metrics: EvalMetrics) -> Verdict:
        """Take an evaluation down, and ask the pruner."""
        session = self._session
        if not self.mine(run):
            return Verdict.CONTINUE
        if session.state.trials[run.trial].pruned_at is not None:
            return Verdict.STOP
        session.do("report", run=run.id, step=metrics.step, loss=metrics.loss)
        return session.shadow.judge.verdict(run.trial, run.seed, metrics.step, session.do)

    def saved(self, run: Run, step: int) -> None:
        """A run's checkpoint is there for its branches."""
        if self.mine(run):
            self._session.do("saved", run=run.id, step=step)

    def settle(self, run: Run, result: RunResult) -> list[RunResult]:
        """Settle a run, and those that waited for its key; empty where somebody else holds it by now."""
        session, state = self._session, self._session.state
        if not self.mine(run):
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

    def leave(self) -> None:
        """End as a worker."""
        if self.worker in self._session.state.workers:
            self._session.do("leave", worker=self.worker)

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
            result = _without_training(run, Outcome.FAILED, why)
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

    def _run(self, run: RunState) -> Run:
        return run_of(self._session.state, self._sweep, run)


def _without_training(run: Run, outcome: Outcome, message: str) -> RunResult:
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


def _last_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return lines[-1] if lines else "(no message)"
