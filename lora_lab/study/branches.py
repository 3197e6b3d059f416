"""Runs that go on from another run's checkpoint with some settings changed: ``extend``, ``clone``, populations."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec import RunSpec, Sweep, run_id
from lora_lab.study.entries import RunState, TrialState
from lora_lab.study.parameters import decode
from lora_lab.study.state import State

KEPT = ("model", "data", "method", "seed")
"""What a checkpoint is of: a branch cannot change it."""


def branch_spec(state: State, sweep: Sweep, trial: TrialState) -> RunSpec:
    """The spec of a branch: its parent's, with the branch's own settings.

    Raises:
        SpecError: they contradict each other, or change what the checkpoint is of.
    """
    assert trial.parent is not None
    before = spec_of(state, sweep, state.runs[trial.parent])
    for path in trial.overrides:
        if path.split(".")[0] in KEPT:
            raise SpecError(
                f"{path}: a branch goes on from a checkpoint and keeps its {', '.join(KEPT)}. "
                "Change optimizer, schedule, budget or evaluation, or put the value into a sweep."
            )
    return before.at(trial.overrides)


def spec_of(state: State, sweep: Sweep, run: RunState) -> RunSpec:
    """The spec of any run, branch or not."""
    trial = state.trials[run.trial]
    if trial.parent is not None:
        return branch_spec(state, sweep, trial)
    return sweep.spec_of(decode(sweep.space, trial.params), run.seed)


def branch_point(state: State, sweep: Sweep, trial: TrialState) -> dict[str, Any]:
    """The point of a branch: its parent's, and what it changes."""
    assert trial.parent is not None
    parent = state.trials[state.runs[trial.parent].trial]
    before = decode(sweep.space, parent.params) if parent.parent is None else branch_point(state, sweep, parent)
    return {**before, **trial.overrides}


def branch_key(state: State, sweep: Sweep, trial: TrialState) -> str:
    """The key of a branch: not that of the same settings from step 0, for it began with others."""
    assert trial.parent is not None
    own = {"spec": branch_spec(state, sweep, trial).key, "trial": trial.number, "parent": trial.parent}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def key_of(state: State, sweep: Sweep, run: RunState) -> str:
    """The key of any run. That of a copy in a population says from which run it goes on, and where."""
    trial = state.trials[run.trial]
    if trial.parent is not None:
        return branch_key(state, sweep, trial)
    spec = spec_of(state, sweep, run)
    if trial.origin is None:
        return spec.key
    of, step = trial.origin
    own = {"spec": spec.key, "parent": key_of(state, sweep, state.runs[run_id(of, run.seed)]), "step": step}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
