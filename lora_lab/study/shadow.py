"""The sweep's trials as an Optuna study in memory: what samplers and pruners look at.

It follows the study's log, so a question to a sampler reads nothing from Optuna's storage and writes nothing to it:
an ask there costs a write for every parameter, and grows with the trials. What the sampler drew and noted goes into
the log in one piece; :mod:`lora_lab.study.mirror` copies it to the storage for people and their tools.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lora_lab.spec import Sweep
from lora_lab.study.judge import COSTS_ATTR, Judge
from lora_lab.study.log import Event
from lora_lab.study.parameters import distributions, suggest
from lora_lab.study.samplers import sampler_of
from lora_lab.study.state import State
from lora_lab.study.verdict import verdict
from lora_lab.study.view import PAUSED_ATTR

PRUNED_ATTR = "lora_lab.pruned_at"
REFUSED_ATTR = "lora_lab.refused"
ORIGIN_ATTR = "lora_lab.origin"
"""Of a copy in a population: the trial it goes on from, and the step."""
SEEN = 300
"""Finished trials that TPE looks at, at most."""
BEST = 50
"""So many of them are the best; TPE takes 25 at most for its good ones."""


class Shadow:
    """Optuna's view of a :class:`State`; call :meth:`follow` with each event after the state has taken it in."""

    def __init__(self, sweep: Sweep, state: State, *, allow_code: bool = False) -> None:
        """
        Raises:
            SpecError: the sampler, the pruner or one of their options is unknown.
        """
        self.sweep, self._state = sweep, state
        self._storage = _Trials()
        self._allow_code = allow_code
        self._distributions = distributions(sweep.space)
        self.study = optuna.create_study(
            storage=self._storage,
            study_name=sweep.name,
            directions=[StudyDirection[objective.direction.upper()] for objective in sweep.targets],
            sampler=sampler_of(sweep, allow_code=allow_code),
        )
        self.judge = Judge(sweep, state, self.study, allow_code=allow_code)
        self._drawn: FrozenTrial | None = None
        self._told = 0
        self._values: dict[int, float] = {}
        """Of finished trials, as small as they are good; infinite where they were pruned."""
        self._unfinished: dict[int, None] = {}

    def draw(self) -> Event:
        """Let the sampler draw the next trial: the fields ``trial``, ``params``, ``system`` and ``study`` of ``ask``.

        The event must be the next that :meth:`follow` gets.
        """
        self._storage.shown = self._shown()
        noted = dict(self._storage.get_study_system_attrs(self.study._study_id))
        try:
            asked = self.study.ask()
            suggest(asked, self.sweep.space, self.sweep.base)
        finally:
            self._storage.shown = None
        self._drawn = self._storage.get_trial(asked._trial_id)
        now = self._storage.get_study_system_attrs(self.study._study_id)
        return {
            "trial": self._drawn.number,
            "params": self._drawn.params,
            "system": self._drawn.system_attrs,
            "study": {name: value for name, value in now.items() if noted.get(name) != value},
        }

    def _shown(self) -> list[int] | None:
        """The trials that the sampler looks at; ``None`` for all.

        TPE fits densities to all it sees, so that its time grows with the sweep (a quarter of a second at 10,000
        trials), and hardly learns from the thousandth mediocre point. Beyond :data:`SEEN` finished trials it sees the
        best :data:`BEST` of them and a fixed pseudo-random choice of the others; and all that are not finished.
        """
        if self.sweep.sampler.name != "tpe" or len(self.sweep.targets) > 1 or len(self._values) <= SEEN:
            return None
        numbers = np.fromiter(self._values, dtype=np.int64, count=len(self._values))
        values = np.fromiter(self._values.values(), dtype=np.float64, count=len(self._values))
        order = np.lexsort((numbers, values))
        best, rest = numbers[order[:BEST]], numbers[order[BEST:]]
        scattered = rest[np.argsort((rest * 2_654_435_761) % (1 << 32), kind="stable")[: SEEN - BEST]]
        return sorted([*best.tolist(), *scattered.tolist(), *self._unfinished])

    def follow(self, event: Event) -> None:
        """Take in an event that the state has just taken in."""
        match event["op"]:
            case "ask":
                self._ask(event)
            case "report":
                self._report(event)
            case "prune":
                self._set(event["trial"], user={PRUNED_ATTR: event["step"]})
            case "rung":
                self._set(event["trial"], user={PAUSED_ATTR: event["step"]})
            case "promote":
                self._set(event["trial"], user={PAUSED_ATTR: None})
            case "breed":
                for copy in event["copies"]:
                    self._ask(copy)
                    of, step = self._state.trials[copy["trial"]].origin or (0, 0)
                    self._set(copy["trial"], user={ORIGIN_ATTR: [of, step]})
            case "import":
                self.study.sampler = sampler_of(self.sweep, allow_code=self._allow_code, head=self._state.imported)
            case "settle" | "sweep":
                finished = self._state.finished
                while self._told < len(finished):
                    self._tell(finished[self._told])
                    self._told += 1

    def mean(self, number: int, step: int) -> float | None:
        """The mean loss of a trial's runs at a step; ``None`` while one has not reported it."""
        trial = self._state.trials[number]
        losses = [trial.losses.get(step, {}).get(seed) for seed in self._state.seeds_of(trial)]
        known = [loss for loss in losses if loss is not None]
        return sum(known) / len(known) if known and len(known) == len(losses) else None

    def _ask(self, event: Event) -> None:
        for name, value in event.get("study", {}).items():
            self._storage.set_study_system_attr(self.study._study_id, name, value)
        if self._drawn is not None and self._drawn.number == event["trial"]:
            self._drawn = None
        else:
            self._storage.add(self.study._study_id, event, self._distributions)
        self._unfinished[event["trial"]] = None
        if event.get("costs"):
            self._set(event["trial"], user={COSTS_ATTR: event["costs"]})
        if event.get("refused") is not None:
            del self._unfinished[event["trial"]]
            self._set(event["trial"], state=TrialState.FAIL, user={REFUSED_ATTR: event["refused"]})

    def _report(self, event: Event) -> None:
        number = self._state.runs[event["run"]].trial
        if self._state.trials[number].seed is None and (mean := self.mean(number, event["step"])) is not None:
            self._set(number, values={event["step"]: mean})

    def _tell(self, number: int) -> None:
        results = self._state.outcomes(number)
        if results is None:  # taken back by a retry later in the log
            return
        state, told = verdict(results, self.sweep.targets, self._state.results.values())
        if state is TrialState.PRUNED and len(self.sweep.targets) == 1:
            reported = self._trial(number).intermediate_values
            told = [reported[max(reported)]] if reported else None
        self._set(number, state=state, told=told)
        self._unfinished.pop(number, None)
        if state is TrialState.COMPLETE and told is not None:
            objective = self.sweep.targets[0]
            self._values[number] = told[0] if objective.direction == "minimize" else -told[0]
        elif state is TrialState.PRUNED:
            self._values[number] = math.inf

    def _trial(self, number: int) -> FrozenTrial:
        id = self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        return self._storage.get_trial(id)

    def _set(
        self,
        number: int,
        *,
        state: TrialState | None = None,
        told: list[float] | None = None,
        values: Mapping[int, float] | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> None:
        trial = self._trial(number)
        changed = FrozenTrial(
            number=number,
            trial_id=trial._trial_id,
            state=state or trial.state,
            value=None,
            values=told if state is not None else trial.values,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, **(user or {})},
            system_attrs=trial.system_attrs,
            intermediate_values={**trial.intermediate_values, **(values or {})},
            datetime_start=trial.datetime_start,
            datetime_complete=(trial.datetime_start if state is not None else trial.datetime_complete),
        )
        self._storage.replace(changed)


class _Trials(InMemoryStorage):
    """Optuna's own storage in memory, in which a finished trial may be told again: its runs may be tried again.

    While :attr:`shown` is set, only trials of these numbers are shown.
    """

    shown: list[int] | None = None

    def add(self, study: int, event: Event, distributions: Mapping[str, BaseDistribution]) -> None:
        """Add the running trial of an ``ask`` event. (``create_new_trial`` takes half a millisecond to copy it.)"""
        with self._lock:
            self._max_trial_id += 1
            trial = FrozenTrial(
                number=len(self._studies[study].trials),
                trial_id=self._max_trial_id,
                state=TrialState.RUNNING,
                value=None,
                params=event["params"],
                distributions={name: distributions[name] for name in event["params"]},
                user_attrs={},
                system_attrs=event.get("system") or {},
                intermediate_values={},
                datetime_start=datetime.datetime.now(),
                datetime_complete=None,
            )
            self._trial_id_to_study_id_and_number[trial._trial_id] = (study, trial.number)
            self._studies[study].trials.append(trial)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials shown, in the order of their numbers."""
        if self.shown is None or deepcopy or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        with self._lock:
            trials = self._studies[study_id].trials
            chosen = [trials[number] for number in self.shown]
            return chosen if states is None else [trial for trial in chosen if trial.state in states]

    def replace(self, trial: FrozenTrial) -> None:
        """Put a trial in the place of the one with its number."""
        with self._lock:
            self._set_trial(trial._trial_id, trial)
            self._update_cache(trial._trial_id, self._trial_id_to_study_id_and_number[trial._trial_id][0])
