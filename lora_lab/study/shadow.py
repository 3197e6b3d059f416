"""The sweep's trials as an Optuna study in memory: what samplers and pruners look at.

It follows the study's log, so a question to a sampler reads nothing from Optuna's storage and writes nothing to it:
an ask there costs a write for every parameter, and grows with the trials. What the sampler drew and noted goes into
the log in one piece; :mod:`lora_lab.study.mirror` copies it to the storage for people and their tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from lora_lab.spec import Sweep
from lora_lab.study.log import Event
from lora_lab.study.parameters import distributions
from lora_lab.study.state import State
from lora_lab.study.strategies import pruner_of, sampler_of
from lora_lab.study.verdict import verdict

PRUNED_ATTR = "lora_lab.pruned_at"
REFUSED_ATTR = "lora_lab.refused"


class Shadow:
    """Optuna's view of a :class:`State`; call :meth:`follow` with each event after the state has taken it in."""

    def __init__(self, sweep: Sweep, state: State) -> None:
        """
        Raises:
            SpecError: the sampler, the pruner or one of their options is unknown.
        """
        self.sweep, self._state = sweep, state
        self._storage = _Trials()
        self._distributions = distributions(sweep.space)
        self.study = optuna.create_study(
            storage=self._storage,
            study_name=sweep.name,
            direction=StudyDirection[sweep.objective.direction.upper()],
            sampler=sampler_of(sweep),
            pruner=pruner_of(sweep),
        )
        self._drawn: FrozenTrial | None = None
        self._told = 0

    def draw(self) -> Event:
        """Let the sampler draw the next trial: the fields ``trial``, ``params``, ``system`` and ``study`` of ``ask``.

        The event must be the next that :meth:`follow` gets.
        """
        noted = dict(self._storage.get_study_system_attrs(self.study._study_id))
        asked = self.study.ask(self._distributions)
        self._drawn = self._storage.get_trial(asked._trial_id)
        now = self._storage.get_study_system_attrs(self.study._study_id)
        return {
            "trial": self._drawn.number,
            "params": self._drawn.params,
            "system": self._drawn.system_attrs,
            "study": {name: value for name, value in now.items() if noted.get(name) != value},
        }

    def follow(self, event: Event) -> None:
        """Take in an event that the state has just taken in."""
        match event["op"]:
            case "ask":
                self._ask(event)
            case "report":
                self._report(event)
            case "prune":
                self._set(event["trial"], user={PRUNED_ATTR: event["step"]})
            case "settle" | "sweep":
                finished = self._state.finished
                while self._told < len(finished):
                    self._tell(finished[self._told])
                    self._told += 1

    def prune(self, number: int) -> bool:
        """Whether the pruner would end the trial now. Its last report must have been followed."""
        return self.study.pruner.prune(self.study, self._trial(number))

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
            self._storage.create_new_trial(self.study._study_id, trial_of(event, self._distributions))
        if event.get("refused") is not None:
            self._set(event["trial"], state=TrialState.FAIL, user={REFUSED_ATTR: event["refused"]})

    def _report(self, event: Event) -> None:
        number = self._state.runs[event["run"]].trial
        if self._state.trials[number].seed is None and (mean := self.mean(number, event["step"])) is not None:
            self._set(number, values={event["step"]: mean})

    def _tell(self, number: int) -> None:
        results = self._state.outcomes(number)
        if results is None:  # taken back by a retry later in the log
            return
        state, value = verdict(results, self.sweep.objective, self._state.results.values())
        if state is TrialState.PRUNED and value is None:
            reported = self._trial(number).intermediate_values
            value = reported[max(reported)] if reported else None
        self._set(number, state=state, value=value)

    def _trial(self, number: int) -> FrozenTrial:
        id = self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        return self._storage.get_trial(id)

    def _set(
        self,
        number: int,
        *,
        state: TrialState | None = None,
        value: float | None = None,
        values: Mapping[int, float] | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> None:
        trial = self._trial(number)
        changed = FrozenTrial(
            number=number,
            trial_id=trial._trial_id,
            state=state or trial.state,
            value=value if state is not None else trial.value,
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
    """Optuna's own storage in memory, in which a finished trial may be told again: its runs may be tried again."""

    def replace(self, trial: FrozenTrial) -> None:
        """Put a trial in the place of the one with its number."""
        with self._lock:
            self._set_trial(trial._trial_id, trial)
            self._update_cache(trial._trial_id, self._trial_id_to_study_id_and_number[trial._trial_id][0])


def trial_of(event: Event, distributions: Mapping[str, Any]) -> FrozenTrial:
    """The running trial that an ``ask`` event began."""
    return create_trial(
        state=TrialState.RUNNING,
        params=event["params"],
        distributions={name: distributions[name] for name in event["params"]},
        system_attrs=event.get("system") or {},
    )
