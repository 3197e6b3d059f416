"""Copies the study's trials to Optuna's storage, for ``optuna-dashboard`` and whatever else reads one.

The storage is a copy: samplers and pruners look at :mod:`lora_lab.study.shadow`, and who trains what is decided in
the log. So the copy may be late, it is written by one worker for all, and one that is lost or spoilt is made again.
Its trials are numbered as ours; branches are not in it, for no sampler drew them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lora_lab.errors import StorageError, SweepFolderError
from lora_lab.spec import Sweep
from lora_lab.study.storage import JOURNAL, close_storage, open_storage, reachable

SWEEP_ATTR = "lora_lab.sweep"

log = logging.getLogger(__name__)


class Mirror:
    """The copy of one study. Not for several threads at once, and one writer at a time (``Log.mirroring``)."""

    def __init__(self, url: str | None, folder: Path) -> None:
        """Open the storage.

        Raises:
            StorageError: it cannot be reached or read.
            SweepFolderError: the journal cannot be written.
        """
        self._url, self._folder = url, folder
        self.storage: BaseStorage = self._open()
        self._study: optuna.Study | None = None
        self._settled: set[int] = set()

    def names(self) -> list[str]:
        """The studies in the storage."""
        with reachable(self._url):
            return optuna.get_all_study_names(self.storage)

    def find(self, name: str) -> list[FrozenTrial] | None:
        """The trials of study ``name``; ``None`` where there is no such study.

        Raises:
            SweepFolderError: the study was not made by lora-lab.
        """
        if name not in self.names():
            return None
        with reachable(self._url):
            study = optuna.load_study(storage=self.storage, study_name=name)
            trials = study.get_trials(deepcopy=False)
            if trials and SWEEP_ATTR not in study.user_attrs:
                raise SweepFolderError(
                    f"study '{name}' in the storage was not made by lora-lab; choose another name with sweep.name=NAME."
                )
            return trials

    def copy(self, sweep: Sweep, name: str, trials: list[FrozenTrial], go_on: Callable[[], bool]) -> None:
        """Bring the copy up to ``trials``, in their order, as long as ``go_on`` says so; the rest is for the next time.

        Raises:
            StorageError: the storage is away.
        """
        with reachable(self._url):
            if self._study is None:
                self._study = self._found(sweep, name)
            tree = {**sweep.to_tree(), "key": sweep.key}
            if self._study.user_attrs.get(SWEEP_ATTR) != tree:
                self._study.set_user_attr(SWEEP_ATTR, tree)
            there = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.number in self._settled:
                    continue
                if not go_on():
                    return
                if trial.number < len(there):
                    self._update(there[trial.number], trial)
                else:
                    self.storage.create_new_trial(self._study._study_id, template_trial=trial)
                if trial.state.is_finished():
                    self._settled.add(trial.number)

    def close(self) -> None:
        """Give connections back."""
        close_storage(self.storage)

    def _found(self, sweep: Sweep, name: str) -> optuna.Study:
        # Asking for `load_if_exists` at once would leave a mark in the journal at every start.
        if name in optuna.get_all_study_names(self.storage):
            return optuna.load_study(storage=self.storage, study_name=name)
        return optuna.create_study(
            storage=self.storage,
            study_name=name,
            directions=[StudyDirection[objective.direction.upper()] for objective in sweep.targets],
            load_if_exists=True,
        )

    def _open(self) -> BaseStorage:
        try:
            return open_storage(self._url, self._folder)
        except StorageError as error:
            if self._url is not None:
                raise
            path = self._folder / JOURNAL
            log.warning("%s It is made again; the spoilt one is kept as %s.spoilt.", error, JOURNAL)
            path.replace(path.with_suffix(".journal.spoilt"))
            return open_storage(self._url, self._folder)

    def _update(self, there: FrozenTrial, trial: FrozenTrial) -> None:
        if there.state.is_finished():
            return
        for name, value in trial.params.items():
            if name not in there.params:
                distribution = trial.distributions[name]
                internal = distribution.to_internal_repr(value)
                self.storage.set_trial_param(there._trial_id, name, internal, distribution)
        for step, loss in trial.intermediate_values.items():
            if step not in there.intermediate_values:
                self.storage.set_trial_intermediate_value(there._trial_id, step, loss)
        for name, said in trial.user_attrs.items():
            if there.user_attrs.get(name) != said:
                self.storage.set_trial_user_attr(there._trial_id, name, said)
        if trial.state is not TrialState.RUNNING:
            self.storage.set_trial_state_values(there._trial_id, trial.state, trial.values)
