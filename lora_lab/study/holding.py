"""Who holds which runs, and which ones wait; the part of :class:`~lora_lab.study.state.State` that is about it."""

from __future__ import annotations

import heapq
from collections.abc import Generator

from lora_lab.spec import RunResult, run_id
from lora_lab.study.course import Course
from lora_lab.study.entries import Cause, RunState, TrialState, WorkerState
from lora_lab.study.log import Event

HOLDING_OPS = ("join", "leave", "lapse", "ask", "branch", "claim", "back", "order", "saved")


class Holding(Course):
    """Trials, their runs, the queue of these, and the workers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.seeds: tuple[int, ...] = ()
        self.trials: dict[int, TrialState] = {}
        self.asked = 0
        self.runs: dict[str, RunState] = {}
        self.branches: dict[str, list[str]] = {}
        """Runs that branched off a run, by that run."""
        self.out: dict[str, str] = {}
        """Keys in training, and the run each trains under."""
        self.workers: dict[str, WorkerState] = {}
        self.lapsed: set[str] = set()
        self._queue: list[tuple[int, int]] = []

    # -- questions ------------------------------------------------------------------------------------

    def queue(self) -> Generator[RunState]:
        """The runs that may be handed out, by trial and seed. Do not apply events that claim while it is read on."""
        later: list[tuple[int, int]] = []
        seen: set[tuple[int, int]] = set()
        try:
            while self._queue:
                place = heapq.heappop(self._queue)
                run = self.runs[run_id(*place)]
                if not run.queued or place in seen or self.at_rung(run):
                    continue  # whoever is promoted comes back by that event
                seen.add(place)
                later.append(place)
                if run.seed in self.seeds_of(self.trials[run.trial]):
                    yield run
        finally:
            for place in later:
                self._wait(*place)

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

    def held(self) -> int:
        """How many runs are handed out."""
        return sum(len(worker.runs) for worker in self.workers.values())

    # -- events ---------------------------------------------------------------------------------------

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
        self._wait(number, seed)

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

    def _wait(self, trial: int, seed: int) -> None:
        """Put a run into the queue."""
        heapq.heappush(self._queue, (trial, seed))

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
                self._wait(trial.number, seed)

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
            self._wait(run.trial, run.seed)

    def _pause(self, event: Event) -> None:
        run = self.runs[event["run"]]
        self.steps_of(run.trial).kept[run.seed] = RunResult.from_tree(event["result"])
        self._free(run)

    def _promote(self, event: Event) -> None:
        steps = self.steps_of(event["trial"])
        steps.paused_at = None
        steps.bred = False
        for seed in steps.kept:
            self._wait(event["trial"], seed)
        steps.kept.clear()

    def _seed(self, event: Event) -> None:
        number, seed = event["trial"], event["seed"]
        self.steps_of(number).further.append(seed)
        name = run_id(number, seed)
        self.runs.setdefault(name, RunState(name, number, seed))
        self._wait(number, seed)

    def _order(self, event: Event) -> None:
        self.runs[event["run"]].order = event["order"]

    def _saved(self, event: Event) -> None:
        run = self.runs[event["run"]]
        run.saved = event["step"]
        self._begun(run)
        if run.order == "save":
            run.order = None
        self._release(run.id, ("saved",))

    def _release(self, parent: str, waits: tuple[str, ...]) -> None:
        """Let the branches go that waited for ``parent``."""
        for name in self.branches.get(parent, ()):
            run = self.runs[name]
            if run.waits in waits:
                run.waits = None
                self._wait(run.trial, run.seed)
