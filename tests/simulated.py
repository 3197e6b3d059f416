"""A worker without a model: it takes runs from a study as the real one does, and makes their losses up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lora_lab.spec import EvalMetrics, Outcome, RunResult, RunSpec, Verdict, pairs
from lora_lab.study import Run, Study

Loss = Callable[[RunSpec, int, int], float]
"""``loss(spec, seed, step)`` of an evaluation."""


def by_rank(spec: RunSpec, seed: int, step: int) -> float:
    """Less with more steps, and with a larger rank."""
    return 1.0 + 1.0 / spec.method.r + seed / 1000 + 1.0 / step


@dataclass
class Simulated:
    """Trains what a study hands out, ``lanes`` at once, in lockstep, for ``steps`` each."""

    study: Study
    loss: Loss = by_rank
    lanes: int = 4
    steps: int = 8
    every: int = 1
    begun: list[str] = field(default_factory=list)
    """Every run that was handed out, in order, as often as it was."""
    trained: dict[str, int] = field(default_factory=dict)
    """Run -> steps done: its checkpoint."""
    fields: Callable[[Run], dict[str, Any]] = lambda run: {}

    def work(self, most: int | None = None) -> Simulated:
        """Train until nothing is left, or ``most`` runs were settled."""
        lanes: list[Run] = []
        settled = 0
        while most is None or settled < most:
            while len(lanes) < self.lanes and (run := self.study.next_run(company=bool(lanes))) is not None:
                self.begun.append(run.id)
                if run.parent_step is not None and run.id not in self.trained:
                    assert self.trained[run.parent or ""] == run.parent_step, "its parent waits for it"
                    self.trained[run.id] = run.parent_step
                    self.study.saved(run, run.parent_step)
                lanes.append(run)
            if not lanes:
                return self
            for run in list(lanes):
                step = self.trained[run.id] = self.trained.get(run.id, 0) + 1
                outcome = self._after(run, step)
                if outcome is None:
                    continue
                lanes.remove(run)
                if outcome is Outcome.PREEMPTED:
                    self.study.pause(run, self._result(run, Outcome.PRUNED))
                else:
                    settled += self.study.settle(run, self._result(run, outcome))
        for run in lanes:
            self.study.put_back(run)
        return self

    def _after(self, run: Run, step: int) -> Outcome | None:
        if step >= self.steps:
            return Outcome.COMPLETED
        if step % self.every:
            return None
        loss = self.loss(run.spec, run.seed, step)
        verdict = self.study.report(run, EvalMetrics(step=step, loss=loss, tokens=10, accuracy=0.5, seconds=0.1))
        return {Verdict.STOP: Outcome.PRUNED, Verdict.PAUSE: Outcome.PREEMPTED}.get(verdict)

    def _result(self, run: Run, outcome: Outcome) -> RunResult:
        step = self.trained[run.id]
        measured: dict[str, Any] = {
            "eval_loss": self.loss(run.spec, run.seed, step),
            "base_eval_loss": 9.0,
            "steps": step,
            "tokens": 100 * step,
            "lane_bytes": 1000 * run.spec.method.r,
            "started": 1000.0 + run.trial,
            "ended": 1001.0 + run.trial,
        }
        return RunResult(
            run=run.id,
            trial=run.trial,
            seed=run.seed,
            key=run.key,
            outcome=outcome,
            point=pairs(run.point),
            **(measured | self.fields(run)),
        )


def outcomes(study: Study) -> dict[str, str]:
    """Outcome by run."""
    return {result.run: str(result.outcome) for result in study.results()}
