"""A run as it is handed out: what there is to train, made of the state, the sweep and the trial's point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_lab.spec import RunSpec, Sweep, run_id
from lora_lab.study import rules
from lora_lab.study.branches import branch_key, branch_point, branch_spec, key_of, spec_of
from lora_lab.study.entries import Cause, RunState
from lora_lab.study.parameters import decode
from lora_lab.study.population import another_optimizer
from lora_lab.study.state import State


@dataclass(frozen=True)
class Run:
    """One training to do: trial number, seed, the trial's point and the spec made of them.

    ``key`` is the experiment's. ``alone``: it must not share its pack. ``halvings``: how often its micro-batch is to
    be halved. ``parent``: the run from whose checkpoint it begins (at ``parent_step``, where that is settled), with
    ``fresh_optimizer`` without its optimizer's state. ``stage``: the run whose beginning is its own too, and from whose
    stem it goes on; ``stem``: others may do so with its own. ``attempt`` counts from 1. ``claim`` is what entitles its
    holder to settle it.
    """

    trial: int
    seed: int
    id: str
    point: dict[str, Any]
    spec: RunSpec
    key: str = ""
    parent: str | None = None
    parent_step: int | None = field(default=None, compare=False)
    fresh_optimizer: bool = field(default=False, compare=False)
    alone: bool = field(default=False, compare=False)
    halvings: int = field(default=0, compare=False)
    attempt: int = field(default=1, compare=False)
    claim: int = field(default=-1, compare=False)
    stage: str | None = field(default=None, compare=False)
    stem: bool = field(default=False, compare=False)


def run_of(state: State, sweep: Sweep, run: RunState) -> Run:
    """What there is to train for an entry of the state, whoever may hold it."""
    trial = state.trials[run.trial]
    if trial.parent is None:
        point = decode(sweep.space, trial.params)
        spec = sweep.spec_of(point, run.seed)
        key = spec.key
    else:
        point = branch_point(state, sweep, trial)
        spec = branch_spec(state, sweep, trial)
        key = branch_key(state, sweep, trial)
    parent, parent_step, fresh = trial.parent, None, any(path == "optimizer.name" for path in trial.overrides)
    if trial.origin is not None:
        of, parent_step = trial.origin
        before = state.runs[run_id(of, run.seed)]
        parent, key = before.id, key_of(state, sweep, run)
        fresh = another_optimizer(spec_of(state, sweep, before), spec)
    return Run(
        run.trial,
        run.seed,
        run.id,
        point,
        spec,
        key=key,
        parent=parent,
        parent_step=parent_step,
        fresh_optimizer=fresh,
        alone=is_alone(run),
        halvings=run.halvings,
    )


def is_alone(run: RunState) -> bool:
    """Whether it must not share its pack: it failed in company, or lost too many workers."""
    return run.alone or run.back[Cause.LOST] >= rules.LOST_ALONE
