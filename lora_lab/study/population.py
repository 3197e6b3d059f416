"""Population-based training (arXiv:1711.09846): the worst of a population go on as copies of the best.

All trials of a sweep are its population. Every ``interval`` optimizer steps they wait for each other, paused with a
checkpoint. Then the worst ``quantile`` of them, and those that diverged or failed, are replaced: each by a new trial
that goes on from the checkpoint (adapter, optimizer's state, place in the data) of one of the best ``quantile``, drawn
at random, with its point perturbed. The replaced ones end PRUNED; the others go on as they were.

Who is replaced and by what follows from the losses and the sweep's seed: not from who trained what, and when.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec import Choices, Domain, FloatRange, IntRange, Masks, Point, RunSpec, Space, Sweep
from lora_lab.spec.domains import step_of
from lora_lab.study.made import options_of

POPULATION = "population"
"""The name of the pruner."""
KEPT = ("model", "data", "method", "seed")
"""Parts of a run that its checkpoint is of, and that a copy keeps (of the method all but the dropout)."""
FIXED = ("budget", "evaluation")
"""Parts that must be the same in the whole population, or its members would not meet."""
DROPOUT = "method.dropout"
TRIES = 50
"""Perturbed points that are tried for a copy before it is given up."""

Accepts = Callable[[int, Point], bool]
"""``accepts(of, point)``: a copy of trial ``of`` may have this point."""


@dataclass(frozen=True)
class Copy:
    """Trial ``trial`` goes on from trial ``of`` at ``point``, in the place of trial ``lost``."""

    trial: int
    of: int
    lost: int
    point: dict[str, Any]


@dataclass(frozen=True)
class Population:
    """How a population is bred. ``interval`` is in optimizer steps; a value is drawn anew with probability
    ``resample``, and otherwise multiplied by one of ``factors`` (a choice moves to a neighbour in its list)."""

    interval: int
    quantile: float
    resample: float
    factors: tuple[float, ...]
    seed: int

    def level(self, step: int) -> int:
        """The step at which a member that has taken ``step`` steps waits next."""
        return (step // self.interval + 1) * self.interval

    def copies(
        self,
        sweep: Sweep,
        points: Mapping[int, Point],
        dead: Sequence[int],
        first: int,
        accepts: Accepts,
    ) -> list[Copy]:
        """Who is replaced, by what.

        ``points`` are those of the living, the best first; ``dead`` are to be replaced anyway. Copies are numbered
        from ``first``. A member for whose copy no other point is found in :data:`TRIES` draws is not replaced.
        """
        alive = list(points)
        count = max(1, int(self.quantile * (len(alive) + len(dead))))
        best = alive[: max(1, min(count, len(alive) // 2))]
        worst = [number for number in reversed(alive) if number not in best][: max(0, count - len(dead))]
        found: list[Copy] = []
        taken: list[tuple[int, Point]] = []
        for lost in (*dead, *worst):
            rng = random.Random(f"{self.seed}/{POPULATION}/{first + len(found)}")
            of = rng.choice(best)
            for _ in range(TRIES):
                point = self.perturbed(sweep.space, sweep.base, points[of], rng)
                if point != points[of] and (of, point) not in taken and accepts(of, point):
                    taken.append((of, point))
                    found.append(Copy(first + len(found), of, lost, point))
                    break
        return found

    def perturbed(self, space: Space, base: RunSpec, point: Point, rng: random.Random) -> dict[str, Any]:
        """A point near ``point``, which keeps what a copy must keep. A path whose condition begins to hold is drawn."""

        def choose(path: str, domain: Domain) -> Any:
            if path not in point:
                return _drawn(domain, rng)
            if not perturbable(path):
                return point[path]
            if rng.random() < self.resample:
                return _drawn(domain, rng)
            return _moved(domain, point[path], rng.choice(self.factors), rng)

        return space.walk(base, choose)


def population_of(sweep: Sweep) -> Population:
    """The population of a sweep with ``pruner=population``.

    Raises:
        SpecError: an option that it has not, or of no use; a sweep of which no population can be made.
    """
    allowed = ("interval", "quantile", "resample", "factors")
    options = options_of("pruner", sweep.pruner, allowed)
    interval = options.get("interval", sweep.base.evaluation.every_steps)
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise _refusal(
            f"interval is a number of steps (evaluation.every_steps, where it is not given), got {interval!r}"
        )
    quantile, resample = options.get("quantile", 0.25), options.get("resample", 0.25)
    factors = options.get("factors", (0.8, 1.25))
    if not _number(quantile) or not 0 < quantile <= 0.5:
        raise _refusal(f"quantile must be above 0 and 0.5 at most, got {quantile!r}")
    if not _number(resample) or not 0 <= resample <= 1:
        raise _refusal(f"resample is a probability, got {resample!r}")
    listed = isinstance(factors, Sequence) and not isinstance(factors, str) and len(factors) > 0
    if not listed or not all(_number(f) and 0 < f != 1 for f in factors):
        raise _refusal(f"factors must be a list of positive numbers other than 1, got {factors!r}")
    _check(sweep)
    return Population(interval, float(quantile), float(resample), tuple(map(float, factors)), sweep.seed)


def perturbable(path: str) -> bool:
    """Whether a copy may have another value there than the trial whose checkpoint it goes on from."""
    return path == DROPOUT or path.split(".")[0] not in KEPT


def goes_on(parent: RunSpec, spec: RunSpec) -> bool:
    """Whether a run of ``spec`` can go on from a checkpoint of ``parent``."""
    same = all(getattr(parent, part) == getattr(spec, part) for part in KEPT if part != "method")
    return same and replace(parent.method, dropout=spec.method.dropout) == spec.method


def another_optimizer(parent: RunSpec, spec: RunSpec) -> bool:
    """Whether the optimizer's state of ``parent`` is of no use to ``spec``: another algorithm, or another switch."""
    one, other = vars(parent.optimizer), vars(spec.optimizer)
    return any(one[name] != other[name] and isinstance(one[name], (str, bool)) for name in one)


def _check(sweep: Sweep) -> None:
    fixed = [path for path in sweep.space.paths if path.split(".")[0] in FIXED]
    if fixed:
        raise _refusal(f"its members train in step, so {', '.join(fixed)} cannot be searched; set it for all")
    if not any(map(perturbable, sweep.space.paths)):
        raise _refusal(
            f"a copy keeps its {', '.join(KEPT)}, and the space ({', '.join(sweep.space.paths)}) has nothing else "
            "to perturb; search optimizer.lr, say"
        )
    if sweep.max_repeats is not None or len(sweep.targets) > 1:
        raise _refusal("racing and several objectives have no order in which to copy; use another pruner")
    if sweep.planned_trials < 2:
        raise _refusal(f"a population of {sweep.planned_trials} has nobody to copy; give sweep.trials=8, say")


def _refusal(why: str) -> SpecError:
    return SpecError(f"sweep.pruner={POPULATION}: {why}.")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _drawn(domain: Domain, rng: random.Random) -> Any:
    match domain:
        case Choices(values) | Masks(values):
            return rng.choice(values)
        case IntRange(low, high, _, True):
            return _within(domain, math.exp(rng.uniform(math.log(low), math.log(high))))
        case IntRange(low, high, step, _):
            return low + step * rng.randrange((high - low) // step + 1)
        case FloatRange(low, high, _, True):
            return _within(domain, math.exp(rng.uniform(math.log(low), math.log(high))))
        case FloatRange(low, high, _, _):
            return _within(domain, rng.uniform(low, high))


def _moved(domain: Domain, value: Any, factor: float, rng: random.Random) -> Any:
    match domain:
        case Choices(values) | Masks(values):
            place = values.index(value) + (1 if factor > 1 else -1)
            return values[min(max(place, 0), len(values) - 1)]
        case IntRange() | FloatRange(step=float()):
            step = domain.step or 1
            moved = _within(domain, value * factor)
            return moved if moved != value else _within(domain, value + (step if factor > 1 else -step))
        case _:
            return _within(domain, value * factor) if value else _drawn(domain, rng)


def _within(domain: IntRange | FloatRange, value: float) -> Any:
    """The value of the domain that is nearest."""
    if isinstance(domain, IntRange):
        steps = 1 if domain.log else domain.step
        value = domain.low + round((value - domain.low) / steps) * steps
        return int(min(max(value, domain.low), domain.low + (domain.high - domain.low) // steps * steps))
    if domain.step is not None:
        last = int((domain.high - domain.low) / domain.step + 1e-9)
        return step_of(domain, min(max(round((value - domain.low) / domain.step), 0), last))
    return min(max(value, domain.low), domain.high)
