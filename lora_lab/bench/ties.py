"""Choices that are exactly as likely: never resolved by their order.

lm-eval takes the first of the most likely choices, and benchmarks put the right one first (TruthfulQA): a model that
gives all choices one score, or NaN, would be perfect. Here a tie is broken in every way there is and the least
favourable counts: an answer is right only where every choice that may have been meant is. Without a tie nothing is
different.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

NUDGE = 1e-12
"""Share of its size by which a tied log-likelihood is raised: far below the distance of two float32 numbers."""
SAME = 1e-9
"""Metrics that differ by less are continuous ones, which ties do not concern."""

Answer = tuple[float, bool]
Process = Callable[[Any, Sequence[Answer]], dict[str, Any]]


class Strict:
    """A multiple-choice task's ``process_results``, with ``ties``: documents whose answer was a tie."""

    def __init__(self, process: Process, choices: Callable[[Any], Sequence[str]]) -> None:
        self.process, self.choices, self.ties = process, choices, 0

    def __call__(self, doc: Any, results: Sequence[Answer]) -> dict[str, Any]:
        """lm-eval's metrics of one document."""
        logs = [log for log, _ in results]
        if not any(map(math.isfinite, logs)) or any(map(math.isnan, logs)):
            logs = [-1.0] * len(logs)  # nothing is known of them: all are tied
        given = self.process(doc, results)
        ties = self._tied(logs, self.choices(doc))
        if not ties or any(isinstance(value, float) and math.isnan(value) for value in given.values()):
            return given
        self.ties += 1
        ways = [self.process(doc, _raised(logs, results, place)) for place in sorted(ties)]
        worst = min(ways, key=_sum)
        out = worst if _sum(worst) < _sum(given) - SAME else given
        return {name: _least(value, [way[name] for way in ways]) for name, value in out.items()}

    def _tied(self, logs: Sequence[float], choices: Sequence[str]) -> set[int]:
        """Places that share the largest log-likelihood: as it is, a character, or a byte."""
        found: set[int] = set()
        sizes = [[1.0] * len(choices), [float(len(c)) for c in choices], [float(len(c.encode())) for c in choices]]
        for size in sizes:
            values = [log / max(1.0, n) for log, n in zip(logs, size, strict=False)]  # more logs: mutual information
            first = [i for i, value in enumerate(values) if value == max(values)]
            if len(first) > 1:
                found |= set(first)
        return found


def _raised(logs: Sequence[float], results: Sequence[Answer], place: int) -> list[Answer]:
    return [
        (log + max(1.0, abs(log)) * NUDGE if i == place else log, greedy)
        for i, (log, (_, greedy)) in enumerate(zip(logs, results, strict=True))
    ]


def _least(value: Any, ways: Sequence[Any]) -> Any:
    """The smallest of a number's ``ways`` where they differ; what is no number stays."""
    if not isinstance(value, (int, float)):
        return value
    return min(ways) if min(ways) < value - SAME else value


def _sum(metrics: dict[str, Any]) -> float:
    return sum(float(value) for value in metrics.values() if isinstance(value, (int, float)))
