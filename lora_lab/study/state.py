"""What the events of a study's log add up to: trials, runs, who holds them, what came of them.

Plain data and one function, :meth:`State.apply`, without clocks, files or Optuna: two workers that have read the same
events know the same. Events are JSON objects; ``op`` says which:

==========  ===================================================================================================
``sweep``   ``tree`` (with ``key``), ``seeds``, ``folder``: the sweep is created, made longer or more often repeated
``join``    ``worker``, ``lease`` (seconds), ``process``: a worker begins
``leave``   ``worker``: it ends, and gives back what it holds
``lapse``   ``worker``, ``why``: it gave no sign of life; others take what it held
``ask``     ``trial``, ``params``, ``system``, ``study`` (what the sampler noted), ``refused``: a trial's point
``branch``  ``trial``, ``seed``, ``parent``, ``overrides``, ``waits``: a run that goes on from another's checkpoint
``claim``   ``worker``, ``run``, ``key``: the run is handed to the worker; the event's number is the claim
``back``    ``run``, ``cause``, ``alone``, ``halvings``: its holder gives it back
``report``  ``run``, ``step``, ``loss``: an evaluation, where a pruner looks
``prune``   ``trial``, ``step``: the pruner has seen enough
``settle``  ``run``, ``result``: for good
``late``    ``run``, ``worker``, ``outcome``: a result that was refused, because its run was somebody else's by then
``retry``   ``runs``: results taken back
``order``   ``run``, ``order``: somebody wants a run stopped or saved
``bare``    ``runs``: their adapters and checkpoints were removed
``saved``   ``run``, ``step``: its checkpoint is there to branch from
``halt``    ``message``: nothing is handed out any more
``go``      from here on it is again
==========  ===================================================================================================

The events that steer the search stand in :mod:`.course`; those about who holds what are taken in by :mod:`.holding`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from lora_lab.errors import StorageError
from lora_lab.spec import Outcome, RunResult, run_id
from lora_lab.study.course import COURSE_OPS
from lora_lab.study.holding import HOLDING_OPS, Holding
from lora_lab.study.log import Event

SHARED = frozenset({Outcome.COMPLETED, Outcome.PRUNED, Outcome.DIVERGED})
"""Outcomes that belong to the experiment itself, so that an equal key has them too. (The others depend on
the machine and the company: such a run is tried again under its other name.)"""
CANCELLED = "cancelled"
"""The message of a ``halt`` that somebody asked for."""
RESULT_OPS = ("sweep", "report", "prune", "settle", "late", "retry", "bare", "halt", "go")
OPS = frozenset([*HOLDING_OPS, *RESULT_OPS, *COURSE_OPS])


class State(Holding):
    """The sum of a log's first :attr:`count` events."""

    def __init__(self) -> None:
        super().__init__()
        self.sweep: dict[str, Any] | None = None
        self.folder: str | None = None
        self.results: dict[str, RunResult] = {}
        self.by_key: dict[str, RunResult] = {}
        self.halted: str | None = None
        self.failures: Counter[str] = Counter()
        """FAILED results since the last ``go``, by the end of their message."""
        self.last: dict[str, str] = {}
        """The last transaction of each author (see :meth:`lora_lab.study.study.Study`)."""
        self.finished: list[int] = []
        """Trials in the order in which all their runs were settled."""

    def take(self, event: Event) -> None:
        """:meth:`apply` the next event of a log that may be damaged.

        Raises:
            StorageError: it makes no sense here.
        """
        try:
            self.apply(event)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            what = event.get("op") if isinstance(event, dict) else event
            raise StorageError(
                f"event {self.count} of the study's log ({what!r}) makes no sense after those before "
                f"it ({error!r}). It was written by another version of lora-lab, or altered."
            ) from error

    def apply(self, event: Event) -> None:
        """Take in the next event of the log."""
        if event["op"] not in OPS:
            raise KeyError(event["op"])
        getattr(self, f"_{event['op']}")(event)
        if "tx" in event:
            author, _, _ = event["tx"].rpartition(":")
            self.last[author] = event["tx"]
        self.count += 1

    # -- questions ------------------------------------------------------------------------------------

    def outcomes(self, number: int) -> list[RunResult] | None:
        """The results of a trial's runs; ``None`` while one is missing."""
        found = [self.results.get(run_id(number, seed)) for seed in self.seeds_of(self.trials[number])]
        return None if None in found else [result for result in found if result is not None]

    def so_far(self, number: int) -> list[RunResult] | None:
        """The settled results of a trial; ``None`` until those of the seeds that every trial has are all there."""
        trial = self.trials[number]
        if trial.seed is None and any(run_id(number, seed) not in self.results for seed in self.seeds):
            return None
        found = [self.results.get(run_id(number, seed)) for seed in self.seeds_of(trial)]
        return [result for result in found if result is not None] or None

    # -- events ---------------------------------------------------------------------------------------

    def _sweep(self, event: Event) -> None:
        self.sweep, self.folder = event["tree"], event["folder"]
        self.seeds = tuple(event["seeds"])
        self.stopped = None
        finished = set(self.finished)
        for trial in self.trials.values():
            if trial.seed is None and trial.refused is None:
                self._add_runs(trial)
                if trial.number not in finished and self.outcomes(trial.number) is not None:
                    self.finished.append(trial.number)

    def _report(self, event: Event) -> None:
        run = self.runs[event["run"]]
        self.trials[run.trial].losses.setdefault(event["step"], {})[run.seed] = event["loss"]

    def _prune(self, event: Event) -> None:
        self.trials[event["trial"]].pruned_at = event["step"]

    def _settle(self, event: Event) -> None:
        result = RunResult.unchecked(event["result"])
        run = self.runs[result.run]
        run.result = self.results[run.id] = result
        run.order = None
        self._begun(run)
        if run.trial in self.steps:
            self.steps[run.trial].kept.pop(run.seed, None)
        self._free(run)
        if result.outcome in SHARED:
            self.by_key.setdefault(result.key, result)
        if result.outcome is Outcome.FAILED:
            self.failures[failure(result.message)] += 1
        if self.trials[run.trial].seed is None and self.outcomes(run.trial) is not None:
            self.finished.append(run.trial)
        self._release(run.id, ("saved", "settled"))

    def _late(self, event: Event) -> None:
        """Only for the record."""

    def _retry(self, event: Event) -> None:
        for name in event["runs"]:
            run = self.runs[name]
            result = self.results.pop(name, None)
            run.result, run.alone, run.halvings = None, False, 0
            run.back.clear()
            if result is not None and self.by_key.get(result.key) is result:
                del self.by_key[result.key]
            self._wait(run.trial, run.seed)
        self._go(event)

    def _bare(self, event: Event) -> None:
        for name in event["runs"]:
            if (result := self.results.get(name)) is not None:
                self.runs[name].result = self.results[name] = replace(result, adapter=None)

    def _halt(self, event: Event) -> None:
        self.halted = event["message"]

    def _go(self, event: Event) -> None:
        self.halted = None
        self.failures.clear()


def failure(message: str | None) -> str:
    """What makes two failures equal: the last line of the message, without the numbers in it."""
    lines = (message or "").strip().splitlines()
    return "".join("#" if char.isdigit() else char for char in lines[-1]) if lines else ""
