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

The events that steer the search stand in :mod:`.course`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from lora_lab.spec import Outcome, RunResult, pairs, run_id
from lora_lab.study.course import COURSE_OPS, Course
from lora_lab.study.log import Event

SHARED = frozenset({Outcome.COMPLETED, Outcome.PRUNED, Outcome.DIVERGED})
"""Outcomes that belong to the experiment itself, so that an equal key has them too. (The others depend on
the machine and the company: such a run is tried again under its other name.)"""
CANCELLED = "cancelled"
"""The message of a ``halt`` that somebody asked for."""
OPS = frozenset(
    [
        "sweep",
        "join",
        "leave",
        "lapse",
        "ask",
        "branch",
        "claim",
        "back",
        "report",
        "prune",
        "settle",
        "late",
        "retry",
        "order",
        "saved",
        "bare",
        "halt",
        "go",
        *COURSE_OPS,
    ]
)


class Cause(StrEnum):
    """Why a run came back to the queue."""

    PREEMPTED = "PREEMPTED"
    LOST = "LOST"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    COMPANY = "COMPANY"
    """Something failed in a pack of several; each of its runs is tried alone."""


@dataclass
class TrialState:
    """One trial. ``losses`` holds, by step, the loss that each seed reported.

    A branch has a ``parent`` run, settings of its own and one ``seed``. A copy in a population has an ``origin``:
    another trial, and the step of it at which it begins.
    """

    number: int
    params: dict[str, Any]
    refused: str | None = None
    pruned_at: int | None = None
    parent: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    origin: tuple[int, int] | None = None
    losses: dict[int, dict[int, float]] = field(default_factory=dict)


@dataclass
class RunState:
    """One run: in the queue, held under a claim, waiting for its parent to be ``saved`` or ``settled``, or settled."""

    id: str
    trial: int
    seed: int
    waits: str | None = None
    holder: str | None = None
    claim: int | None = None
    key: str | None = None
    alone: bool = False
    halvings: int = 0
    attempts: int = 0
    back: Counter[str] = field(default_factory=Counter)
    result: RunResult | None = None
    order: str | None = None
    saved: int | None = None

    @property
    def queued(self) -> bool:
        """It may be handed out."""
        return self.waits is None and self.holder is None and self.result is None


@dataclass
class WorkerState:
    """One worker, alive until it leaves or lapses. ``process`` says which one it is (see :mod:`.lease`)."""

    id: str
    lease: float
    process: dict[str, Any]
    runs: set[str] = field(default_factory=set)


class State(Course):
    """The sum of a log's first :attr:`count` events."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.sweep: dict[str, Any] | None = None
        self.folder: str | None = None
        self.seeds: tuple[int, ...] = ()
        self.trials: dict[int, TrialState] = {}
        self.asked = 0
        self.runs: dict[str, RunState] = {}
        self.branches: dict[str, list[str]] = {}
        """Runs that branched off a run, by that run."""
        self.results: dict[str, RunResult] = {}
        self.by_key: dict[str, RunResult] = {}
        self.out: dict[str, str] = {}
        """Keys in training, and the run each trains under."""
        self.workers: dict[str, WorkerState] = {}
        self.lapsed: set[str] = set()
        self.halted: str | None = None
        self.failures: Counter[str] = Counter()
        """FAILED results since the last ``go``, by the end of their message."""
        self.last: dict[str, str] = {}
        """The last transaction of each author (see :meth:`lora_lab.study.study.Study`)."""
        self.finished: list[int] = []
        """Trials in the order in which all their runs were settled."""
        self._queue: list[tuple[int, int]] = []

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

    def queue(self) -> Generator[RunState]:
        """The runs that may be handed out, by trial and seed. Do not apply events that claim while it is read on."""
        later: list[tuple[int, int]] = []
        seen: set[tuple[int, int]] = set()
        try:
            while self._queue:
                place = heapq.heappop(self._queue)
                run = self.runs[run_id(*place)]
                if not run.queued or place in seen:
                    continue
                seen.add(place)
                later.append(place)
                if run.seed not in self.seeds_of(self.trials[run.trial]) or self.at_rung(run):
                    continue
                yield run
        finally:
            for place in later:
                heapq.heappush(self._queue, place)

    def seeds_of(self, trial: TrialState) -> tuple[int, ...]:
        """The seeds a trial is to be trained with."""
        if trial.refused is not None:
            return ()
        if trial.seed is not None:
            return (trial.seed,)
        steps = self.steps.get(trial.number)
        return (*self.seeds, *(s for s in steps.further if s not in self.seeds)) if steps else self.seeds

    def at_rung(self, run: RunState) -> bool:
        """It was given back at a rung, and waits there: for the trial's other runs, or to be promoted."""
        steps = self.steps.get(run.trial)
        return steps is not None and run.seed in steps.kept

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

    def held(self) -> int:
        """How many runs are handed out."""
        return sum(len(worker.runs) for worker in self.workers.values())

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

    def _join(self, event: Event) -> None:
        self.workers[event["worker"]] = WorkerState(event["worker"], event["lease"], event["process"])

    def _leave(self, event: Event) -> None:
        worker = self.workers.pop(event["worker"], None)
        for name in sorted(worker.runs if worker else ()):
            self._free(self.runs[name])

    def _lapse(self, event: Event) -> None:
        worker = self.workers.pop(event["worker"], None)
        self.lapsed.add(event["worker"])
        for name in sorted(worker.runs if worker else ()):
            self.runs[name].back[Cause.LOST] += 1
            self._free(self.runs[name])

    def _ask(self, event: Event) -> None:
        trial = TrialState(event["trial"], event["params"], event.get("refused"))
        self.trials[trial.number] = trial
        self.asked += 1
        self._add_runs(trial)

    def _branch(self, event: Event) -> None:
        number, seed = event["trial"], event["seed"]
        trial = TrialState(number, {}, parent=event["parent"], overrides=event["overrides"], seed=seed)
        self.trials[number] = trial
        self.branches.setdefault(event["parent"], []).append(run_id(number, seed))
        run = RunState(run_id(number, seed), number, seed, waits=event["waits"])
        self.runs[run.id] = run
        heapq.heappush(self._queue, (number, seed))

    def _breed(self, event: Event) -> None:
        for number in event["members"]:
            self.steps_of(number).bred = True
        for copy in event["copies"]:
            paused_at = self.steps_of(copy["of"]).paused_at
            assert paused_at is not None
            trial = TrialState(copy["trial"], copy["params"], origin=(copy["of"], paused_at))
            self.trials[trial.number] = trial
            self.asked += 1
            self.copies += 1
            self._add_runs(trial)
            self.replaced[copy["lost"]] = trial.number
            self.unbegun.setdefault(copy["of"], set()).update(run_id(trial.number, seed) for seed in self.seeds)

    def _begun(self, run: RunState) -> None:
        """A copy has its origin's checkpoint, or will not need it any more."""
        origin = self.trials[run.trial].origin
        if origin is not None:
            self.unbegun.get(origin[0], set()).discard(run.id)

    def _add_runs(self, trial: TrialState) -> None:
        if trial.refused is not None:
            return
        for seed in self.seeds:
            name = run_id(trial.number, seed)
            if name not in self.runs:
                self.runs[name] = RunState(name, trial.number, seed)
                heapq.heappush(self._queue, (trial.number, seed))

    def _claim(self, event: Event) -> None:
        run = self.runs[event["run"]]
        run.holder, run.claim, run.key = event["worker"], self.count, event["key"]
        run.attempts += 1
        self.out[event["key"]] = run.id
        self.workers[event["worker"]].runs.add(run.id)

    def _back(self, event: Event) -> None:
        run = self.runs[event["run"]]
        run.back[event["cause"]] += 1
        run.alone = event.get("alone", run.alone)
        run.halvings = event.get("halvings", run.halvings)
        self._free(run)

    def _free(self, run: RunState) -> None:
        """Take a run from its holder and put it into the queue, unless it is settled."""
        if run.holder is not None and run.holder in self.workers:
            self.workers[run.holder].runs.discard(run.id)
        if run.key is not None and self.out.get(run.key) == run.id:
            del self.out[run.key]
        run.holder = run.claim = None
        if run.result is None:
            heapq.heappush(self._queue, (run.trial, run.seed))

    def _pause(self, event: Event) -> None:
        run = self.runs[event["run"]]
        self.steps_of(run.trial).kept[run.seed] = RunResult.from_tree(event["result"])
        self._free(run)

    def _promote(self, event: Event) -> None:
        steps = self.steps_of(event["trial"])
        steps.paused_at = None
        steps.bred = False
        for seed in steps.kept:
            heapq.heappush(self._queue, (event["trial"], seed))
        steps.kept.clear()

    def _seed(self, event: Event) -> None:
        number, seed = event["trial"], event["seed"]
        self.steps_of(number).further.append(seed)
        name = run_id(number, seed)
        self.runs.setdefault(name, RunState(name, number, seed))
        heapq.heappush(self._queue, (number, seed))

    def _report(self, event: Event) -> None:
        run = self.runs[event["run"]]
        self.trials[run.trial].losses.setdefault(event["step"], {})[run.seed] = event["loss"]

    def _prune(self, event: Event) -> None:
        self.trials[event["trial"]].pruned_at = event["step"]

    def _settle(self, event: Event) -> None:
        result = _result(event["result"])
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

    def _release(self, parent: str, waits: tuple[str, ...]) -> None:
        """Let the branches go that waited for ``parent``."""
        for name in self.branches.get(parent, ()):
            run = self.runs[name]
            if run.waits in waits:
                run.waits = None
                heapq.heappush(self._queue, (run.trial, run.seed))

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
            heapq.heappush(self._queue, (run.trial, run.seed))
        self._go(event)

    def _order(self, event: Event) -> None:
        self.runs[event["run"]].order = event["order"]

    def _saved(self, event: Event) -> None:
        run = self.runs[event["run"]]
        run.saved = event["step"]
        self._begun(run)
        if run.order == "save":
            run.order = None
        self._release(run.id, ("saved",))

    def _bare(self, event: Event) -> None:
        for name in event["runs"]:
            if (result := self.results.get(name)) is not None:
                self.runs[name].result = self.results[name] = replace(result, adapter=None)

    def _halt(self, event: Event) -> None:
        self.halted = event["message"]

    def _go(self, event: Event) -> None:
        self.halted = None
        self.failures.clear()


def _result(tree: Mapping[str, Any]) -> RunResult:
    """:meth:`RunResult.from_tree` without its checks, which took most of the time it takes to read a log."""
    fields = {**tree, "point": pairs(tree["point"]), "scores": pairs(tree["scores"])}
    return RunResult(**{**fields, "outcome": Outcome(tree["outcome"])})


def failure(message: str | None) -> str:
    """What makes two failures equal: the last line of the message, without the numbers in it."""
    lines = (message or "").strip().splitlines()
    return "".join("#" if char.isdigit() else char for char in lines[-1]) if lines else ""
