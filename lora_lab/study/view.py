"""An Optuna study as a sampler or a pruner should see it.

Two things are not as Optuna has them. A trial whose runs are paused at a rung is RUNNING in the storage, but has said
all that it may ever say: samplers learn from it as from a pruned one. And pruners refuse several objectives: they
are shown the one that is seen while a run trains, and of the trials only those that may be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

PAUSED_ATTR = "lora_lab.paused_at"
"""User attribute of a trial: the step at which its runs are paused; ``None`` once they go on."""


class View(optuna.Study):
    """``study``, read through the rules above; what is written goes to the study itself.

    Args:
        study: the real one.
        direction: shown as the study's only objective (``None``: its own ones).
        keep: the trials to be seen (``None``: all).
        best: shown as the best trial.
    """

    def __init__(
        self,
        study: optuna.Study,
        direction: StudyDirection | None = None,
        keep: Callable[[FrozenTrial], bool] | None = None,
        best: FrozenTrial | None = None,
    ) -> None:
        self.__dict__.update(study.__dict__)
        self._real = study
        self._keep = keep
        self._best = best
        if direction is not None:
            self._directions = [direction]

    @property
    def best_trial(self) -> FrozenTrial:
        """The trial to compare with; raises ``ValueError`` where there is none."""
        return super().best_trial if self._best is None else self._best

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = [shown(trial) for trial in self._real._get_trials(deepcopy=deepcopy, use_cache=use_cache)]
        kept = [trial for trial in trials if self._keep is None or self._keep(trial)]
        return kept if states is None else [trial for trial in kept if trial.state in states]

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials that are to be seen, paused ones as pruned."""
        return self._get_trials(deepcopy, states)


def shown(trial: FrozenTrial) -> FrozenTrial:
    """A trial, as a pruned one while its runs are paused."""
    if trial.user_attrs.get(PAUSED_ATTR) is None or trial.state.is_finished():
        return trial
    out = copy.copy(trial)
    out.state = TrialState.PRUNED
    out.value = out.intermediate_values.get(max(out.intermediate_values, default=0))
    return out
