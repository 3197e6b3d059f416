"""How far a sweep is, and its best trials so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from lora_lab.spec import Sweep
from lora_lab.study.parameters import decode
from lora_lab.study.state import State
from lora_lab.study.steering import Steering
from lora_lab.study.verdict import front, value_of


@dataclass(frozen=True)
class Counts:
    """How far a sweep is. ``runs`` are settled, ``running`` handed out to ``workers``; ``refused`` trials had a point
    that no run accepts and were never trained. ``planned_runs`` leaves those out. ``halted`` says why nothing is
    handed out any more, if so; ``stopped`` which stop rule holds."""

    trials: int
    planned_trials: int
    runs: int
    planned_runs: int
    by_outcome: dict[str, int]
    running: int
    refused: int = 0
    workers: int = 0
    halted: str | None = None
    stopped: str | None = None


def counts_of(state: State, sweep: Sweep, steering: Steering) -> Counts:
    """How far the sweep is, by its state and what is still to be asked."""
    wanted = sum(len(state.seeds_of(trial)) for trial in state.trials.values())
    results = state.results.values()
    extra = sum(result.seed not in state.seeds_of(state.trials[result.trial]) for result in results)
    unasked = steering.unasked()
    return Counts(
        trials=state.asked,
        planned_trials=state.asked + unasked,
        runs=len(results),
        planned_runs=wanted + extra + unasked * sweep.repeats + len(steering.round()),
        by_outcome=dict(Counter(str(result.outcome) for result in results)),
        running=state.held(),
        refused=sum(trial.refused is not None for trial in state.trials.values()),
        workers=len(state.workers),
        halted=state.halted,
        stopped=state.stopped,
    )


def best_trials(state: State, sweep: Sweep) -> list[tuple[int, dict[str, Any], list[float]]]:
    """See :meth:`lora_lab.study.Study.front`."""
    targets = sweep.targets
    done: list[tuple[int, list[float]]] = []
    for number, trial in state.trials.items():
        if trial.seed is None and trial.refused is None and (results := state.so_far(number)) is not None:
            values = [value_of(results, objective) for objective in targets]
            known = [value for value in values if value is not None]
            done += [(number, known)] if len(known) == len(values) else []
    best = [done[place] for place in front([values for _, values in done], targets)]
    best.sort(key=lambda item: (targets[0].sign * item[1][0], item[0]))
    kept = best if len(targets) > 1 else best[:1]
    return [(number, decode(sweep.space, state.trials[number].params), values) for number, values in kept]
