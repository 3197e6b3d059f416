"""Whether a run goes on after an evaluation, by the sweep's pruner; and which paused trial is promoted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import optuna
from optuna.pruners import BasePruner, WilcoxonPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lora_lab.spec import Outcome, Point, RunResult, Sweep, Verdict, run_id
from lora_lab.study.population import Accepts, Copy, Population
from lora_lab.study.pruners import judged, pruner_of
from lora_lab.study.rungs import Rungs
from lora_lab.study.state import State
from lora_lab.study.view import View

COSTS_ATTR = "lora_lab.costs"
"""User attribute of a trial: objective -> what was predicted of it before it trained (bytes, parameters, FLOPs)."""
COSTS: Mapping[str, str] = {
    "trainable_parameters": "parameters",
    "lane_bytes": "peak_memory",
    "peak_bytes": "peak_memory",
    "flops": "flops_per_step",
}
"""Objective -> the figure that predicts it, up to a constant factor."""

Do = Callable[..., None]
"""Lets an event happen: ``do(op, **fields)``."""


class Judge:
    """The pruner of a sweep, over the state of its study and Optuna's view of it.

    With several objectives a trial is compared, by its loss, only with trials that were predicted to cost no more in
    the other objectives: what is worse in loss but cheaper may be on the Pareto front.
    """

    def __init__(self, sweep: Sweep, state: State, study: optuna.Study, *, allow_code: bool = False) -> None:
        """Raises ``SpecError`` as :func:`~lora_lab.study.pruners.pruner_of`."""
        self._sweep, self._state, self._study = sweep, state, study
        pruner = pruner_of(sweep, allow_code=allow_code)
        self.rungs = pruner if isinstance(pruner, Rungs) else None
        self.population = pruner if isinstance(pruner, Population) else None
        self._pruner: BasePruner | None = pruner if isinstance(pruner, BasePruner) else None
        objective = judged(sweep)
        self._sign = objective.sign if objective else 1

    @property
    def needs_costs(self) -> bool:
        """Whether trials must carry their predicted costs (:data:`COSTS_ATTR`)."""
        return (self._pruner or self.rungs) is not None and len(self._sweep.targets) > 1

    def verdict(self, number: int, seed: int, step: int, do: Do) -> Verdict:
        """Judge a run whose evaluation at ``step`` the state has taken in; what is decided happens by ``do``.

        A trial's value at a step is the mean over its seeds, known once all of them have reported it.
        """
        trial = self._state.trials[number]
        if seed not in self._state.seeds:  # a further one: its trial is settled, and a contender
            return Verdict.CONTINUE
        if trial.pruned_at is not None:
            return Verdict.STOP
        if number in self._state.replaced:
            return Verdict.STOP
        if self.rungs is not None or self.population is not None:
            return self._at_rung(number, step, do)
        here = trial.losses.get(step, {})
        if isinstance(self._pruner, WilcoxonPruner):
            bad = self._worse_by_seeds(self._pruner, number, step)
        elif self._pruner is None or not all(s in here for s in self._state.seeds_of(trial)):
            return Verdict.CONTINUE
        else:
            now = self._frozen(number)
            bad = self._pruner.prune(View(self._study, self._direction, self._peers(now)), now)
        if not bad:
            return Verdict.CONTINUE
        do("prune", trial=number, step=step)
        return Verdict.STOP

    # Pruners of Optuna

    def _worse_by_seeds(self, pruner: WilcoxonPruner, number: int, step: int) -> bool:
        """Optuna's signed-rank test, seed by seed at this step, against the best trial that is settled."""
        now = self._frozen(number)
        keep = self._peers(now)
        mine = self._state.trials[number].losses[step]
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        at_step = {t.number: self._state.trials[t.number].losses.get(step, {}) for t in complete if keep(t)}
        full = [n for n, losses in at_step.items() if n != number and losses.keys() >= mine.keys()]
        if not full:
            return False
        best = min(full, key=lambda n: self._sign * sum(at_step[n].values()) / len(at_step[n]))
        this, other = copy.copy(now), copy.copy(self._frozen(best))
        this.intermediate_values = dict(mine)
        other.intermediate_values = dict(at_step[best])
        return pruner.prune(View(self._study, self._direction, best=other), this)

    @property
    def _direction(self) -> StudyDirection:
        return StudyDirection.MINIMIZE if self._sign > 0 else StudyDirection.MAXIMIZE

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _peers(self, trial: FrozenTrial) -> Callable[[FrozenTrial], bool]:
        """Whether a trial may be compared with ``trial``: it costs no more, as far as that was predicted."""
        mine = trial.user_attrs.get(COSTS_ATTR, {})

        def keep(other: FrozenTrial) -> bool:
            costs = other.user_attrs.get(COSTS_ATTR, {})
            return all(costs.get(name, value) <= value for name, value in mine.items())

        return keep

    # Rungs

    def _level(self, number: int) -> int:
        """The step at which a trial is judged next."""
        done = self._state.steps_of(number).rungs
        if self.rungs is not None:
            return self.rungs.level(number, len(done))
        assert self.population is not None
        origin = self._state.trials[number].origin
        return self.population.level(done[-1][0] if done else origin[1] if origin else 0)

    def _at_rung(self, number: int, step: int, do: Do) -> Verdict:
        trial, steps = self._state.trials[number], self._state.steps_of(number)
        if steps.paused_at is not None:
            return Verdict.PAUSE if step <= steps.paused_at else Verdict.CONTINUE
        level = self._level(number)
        if step < level:
            return Verdict.CONTINUE
        there = [
            min((s, losses[seed]) for s, losses in trial.losses.items() if s >= level and seed in losses)
            for seed in self._state.seeds
            if any(s >= level and seed in losses for s, losses in trial.losses.items())
        ]
        if len(there) < len(self._state.seeds):
            return Verdict.PAUSE
        do("rung", trial=number, step=step, mean=sum(loss for _, loss in there) / len(there))
        if number not in self.promotable():
            return Verdict.PAUSE
        do("promote", trial=number)
        return Verdict.CONTINUE

    def promotable(self) -> list[int]:
        """The paused trials that may go on now, the best first."""
        if self.population is not None:
            steps, unbegun = self._state.steps, self._state.unbegun
            return [n for n in steps if steps[n].bred and n not in self._state.replaced and not unbegun.get(n)]
        return [] if self.rungs is None else self.rungs.promotable(self._state.steps, self._rank)

    # Populations

    def breed(self, points: Callable[[int], Point], accepts: Accepts) -> tuple[list[int], list[Copy]] | None:
        """The members of the population and their copies, once all who live are paused; ``None`` before.

        ``points`` gives a trial's point. A trial of which a run has ended other than COMPLETED is dead.
        """
        if self.population is None:
            return None
        state, alive, dead = self._state, list[int](), list[int]()
        for number, trial in state.trials.items():
            if trial.seed is not None or trial.refused is not None or number in state.replaced:
                continue
            ends = [r.outcome for s in state.seeds_of(trial) if (r := state.results.get(run_id(number, s))) is not None]
            if any(outcome is not Outcome.COMPLETED for outcome in ends):
                dead.append(number)
            elif len(ends) < len(state.seeds_of(trial)):
                alive.append(number)
        steps = {number: state.steps_of(number) for number in alive}
        if not alive or any(step.paused_at is None or step.bred for step in steps.values()):
            return None
        alive.sort(key=lambda number: (self._sign * steps[number].rungs[-1][1], number))
        around = {number: points(number) for number in alive}
        return alive, self.population.copies(self._sweep, around, dead, state.asked, accepts)

    def displaced(self) -> list[RunResult]:
        """What settles the paused runs of replaced trials."""
        state, found = self._state, list[RunResult]()
        for lost, by in state.replaced.items():
            for result in state.steps_of(lost).kept.values():
                of, step = state.trials[by].origin or (0, 0)
                why = f"replaced at step {step} by trial {by}, which goes on from trial {of}"
                found.append(replace(result, message=why))
        return found

    def last_chance(self) -> int | None:
        """The trial to be promoted though it is not good enough, because none would be trained to its end."""
        if self.rungs is None or any(r.outcome is Outcome.COMPLETED for r in self._state.results.values()):
            return None
        return self.rungs.last_chance(self._state.steps, self._rank)

    def _rank(self, number: int, rung: int) -> tuple[float, ...]:
        """Orders trials on a rung, less first: by loss; with several objectives first by how many cheaper ones it
        does not beat."""
        loss = self._sign * self._state.steps[number].rungs[rung][1]
        if not self.needs_costs:
            return (loss,)
        keep = self._peers(self._frozen(number))
        on = [n for n, steps in self._state.steps.items() if len(steps.rungs) > rung and keep(self._frozen(n))]
        return (sum(self._sign * self._state.steps[n].rungs[rung][1] < loss for n in on), loss)
