"""How far a search is, as anybody can see from its log: what was refused, shared, paused, stopped."""

from __future__ import annotations

from dataclasses import dataclass

from lora_lab.spec import FIRST_BRANCH, Outcome
from lora_lab.study.state import State


@dataclass(frozen=True)
class Standing:
    """``refused`` holds the reason by trial; ``shared`` the runs that got an equal run's result, with that run;
    ``waiting`` the trials that are paused at a rung; ``planned_runs`` leaves refused trials out and has the further
    seeds of contenders in. ``stopped`` says which stop rule holds. ``copies`` are the trials that a population bred,
    each with the trial that it goes on from and the step. ``branches`` are the unsettled runs of ``extend`` and
    ``clone``; they are no part of the numbers above.
    """

    planned_trials: int
    planned_runs: int
    refused: dict[int, str]
    shared: dict[str, str]
    waiting: tuple[int, ...]
    stopped: str | None
    copies: dict[int, tuple[int, int]]
    branches: tuple[str, ...]


def standing(state: State) -> Standing | None:
    """The standing of a study; ``None`` before its log has a sweep."""
    if state.sweep is None:
        return None
    planned = state.sweep.get("planned_trials", state.sweep["trials"] or 0) + len(state.imported) + state.copies
    unasked = 0 if state.stopped is not None else max(0, planned - state.asked)
    trials = [trial for trial in state.trials.values() if trial.refused is None and trial.seed is None]
    wanted = {(t.number, seed) for t in trials for seed in state.seeds_of(t)}
    wanted |= {(result.trial, result.seed) for result in state.results.values() if result.trial < FIRST_BRANCH}
    return Standing(
        planned_trials=state.asked + unasked,
        planned_runs=len(wanted) + unasked * len(state.seeds),
        refused={t.number: t.refused for t in state.trials.values() if t.refused is not None},
        shared=_shared(state),
        waiting=tuple(sorted(n for n, steps in state.steps.items() if steps.kept)),
        stopped=state.stopped,
        copies={t.number: t.origin for t in state.trials.values() if t.origin is not None},
        branches=tuple(r.id for r in state.runs.values() if r.trial >= FIRST_BRANCH and r.result is None),
    )


def _shared(state: State) -> dict[str, str]:
    """The runs that were not trained because an equal one was, and that one."""
    found: dict[str, str] = {}
    for name, result in state.results.items():
        if result.outcome in (Outcome.COMPLETED, Outcome.PRUNED, Outcome.DIVERGED):
            if (taken := state.taken.get(result.key)) is not None:
                found[name] = taken.message or taken.run
            elif (first := state.by_key.get(result.key)) is not None and first.run != name:
                found[name] = first.run
    return found
