"""Successive halving that pauses and promotes: ASHA (arXiv:1810.05934) and Hyperband (arXiv:1603.06560) over it.

A rung is a number of optimizer steps: ``min_resource * reduction_factor^k``. At a rung's first evaluation a trial is
paused: its runs leave their slots with a checkpoint. It is promoted, and goes on where it stopped, as soon as it is
among the best ``1 / reduction_factor`` of all trials that have reached that rung. What is still paused when the sweep
has nothing else to do ends PRUNED with what it had; the best of the highest rung is promoted before that if no trial
would have been trained to its end.

Hyperband runs several such ladders side by side, which start at higher and higher rungs; a trial belongs to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec import Sweep
from lora_lab.study.course import Steps
from lora_lab.study.made import options_of
from lora_lab.study.samplers import seed_of

Rank = Callable[[int, int], Any]
"""``rank(trial, rung)`` orders the trials of a rung; less is better."""


@dataclass(frozen=True)
class Rungs:
    """The ladders of a sweep. ``brackets`` holds how many of every so many trials each ladder gets, in order.

    Steps are optimizer steps.
    """

    min_resource: int
    factor: int
    seed: int
    brackets: tuple[int, ...] = (1,)

    def bracket(self, trial: int) -> int:
        """The ladder of a trial, drawn by its number."""
        place = seed_of(self.seed, "bracket", trial) % sum(self.brackets)
        for bracket, size in enumerate(self.brackets):
            if place < size:
                return bracket
            place -= size
        raise AssertionError("the place is below the sum of the brackets")

    def level(self, trial: int, rung: int) -> int:
        """Steps after which a trial is on that rung (from 0) of its ladder."""
        return int(self.min_resource * self.factor ** (rung + self.bracket(trial)))

    def promotable(self, trials: Mapping[int, Steps], rank: Rank) -> list[int]:
        """The paused trials that may go on, the highest rung first and the best of it first."""
        on: dict[tuple[int, int], list[int]] = {}
        for number, steps in trials.items():
            for rung in range(len(steps.rungs)):
                on.setdefault((rung, self.bracket(number)), []).append(number)
        found: list[int] = []
        for (rung, _), there in sorted(on.items(), key=lambda item: (-item[0][0], item[0][1])):
            count = len(there) // self.factor
            here = [n for n in there if trials[n].paused_at is not None and len(trials[n].rungs) == rung + 1]
            if count and here:
                there.sort(key=lambda number: (rank(number, rung), number))
                found += [number for number in there[:count] if number in here]
        return found

    def last_chance(self, trials: Mapping[int, Steps], rank: Rank) -> int | None:
        """The trial that goes on though it is not among the best ``1 / factor``: the best of the highest rung."""
        waiting = [number for number, steps in trials.items() if steps.paused_at is not None]
        if not waiting:
            return None

        def place(number: int) -> tuple[int, Any, int]:
            rungs = trials[number].rungs
            return -rungs[-1][0], rank(number, len(rungs) - 1), number

        return min(waiting, key=place)


def _asha(sweep: Sweep) -> Rungs:
    options = _numbers(sweep, ("min_resource", "reduction_factor"))
    return Rungs(_least(sweep, options), _factor(options, 4), sweep.seed)


def _hyperband(sweep: Sweep) -> Rungs:
    options = _numbers(sweep, ("min_resource", "max_resource", "reduction_factor"))
    least, factor = _least(sweep, options), _factor(options, 3)
    most = options.get("max_resource", sweep.base.budget.steps)
    if most is None:
        raise SpecError("sweep.pruner=hyperband: give pruner.options.max_resource, the steps of a whole run.")
    if most < least:
        raise SpecError(f"sweep.pruner=hyperband: max_resource={most} is below min_resource={least}.")
    count = int(math.log(most / least) / math.log(factor) + 1e-9) + 1
    sizes = [math.ceil(count * factor**s / (s + 1)) for s in range(count - 1, -1, -1)]
    return Rungs(least, factor, sweep.seed, tuple(sizes))


RUNG_PRUNERS: Mapping[str, Callable[[Sweep], Rungs]] = {"asha": _asha, "hyperband": _hyperband}
"""By name: the ladders of a sweep."""


def _numbers(sweep: Sweep, allowed: tuple[str, ...]) -> dict[str, int]:
    options = options_of("pruner", sweep.pruner, allowed)
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError(f"sweep.pruner: {sweep.pruner.name} needs {name} to be a whole number, got {value!r}.")
    return options


def _least(sweep: Sweep, options: Mapping[str, int]) -> int:
    least = options.get("min_resource", sweep.base.evaluation.every_steps)
    if least is None:
        raise SpecError(
            f"sweep.pruner={sweep.pruner.name}: give pruner.options.min_resource, the steps of the first rung, or "
            "evaluation.every_steps."
        )
    return least


def _factor(options: Mapping[str, int], usual: int) -> int:
    factor = options.get("reduction_factor", usual)
    if factor < 2:
        raise SpecError(f"sweep.pruner: reduction_factor must be 2 or more, got {factor}.")
    return factor
