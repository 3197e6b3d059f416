"""Learning-rate schedules: a factor of the peak rate at each optimizer step, one line a name in :data:`CURVES`.

All warm up linearly from 1/warmup to 1, then follow their curve to the last step. The curves are those of
``transformers.get_scheduler``, but for the first warm-up step, which there has rate 0 and is wasted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.spec import ScheduleSpec


@dataclass(frozen=True)
class Place:
    """Where a run stands after its warm-up: at ``step`` (0-based, of ``total``), of which ``warmup`` were that."""

    step: int
    warmup: int
    total: int

    @property
    def progress(self) -> float:
        """In [0, 1): the way from the end of the warm-up to the last step."""
        return self.since(self.warmup)

    def since(self, start: int) -> float:
        """In [0, 1]: the way from step ``start`` to the last one; 0 before it."""
        return min(1.0, max(0, self.step - start) / max(1, self.total - start))


Own = Mapping[str, Any]
"""The fields that a schedule alone reads, by name."""

_FALLS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),  # arXiv:2405.18392
}


def _ending(factor: float, own: Own) -> float:
    """``factor``, which falls from 1 to 0, made to fall to the schedule's last rate."""
    least: float = own["min_lr_ratio"]
    return least + (1.0 - least) * factor


def _cosine_restarts(place: Place, own: Own) -> float:
    """``cycles`` half-cosines, each from the full rate (arXiv:1608.03983, without growing periods)."""
    return _ending(_FALLS["cosine"](own["cycles"] * place.progress % 1.0) if place.progress < 1.0 else 0.0, own)


def _inverse_sqrt(place: Place, own: Own) -> float:
    """Falls as one over the root of the steps (arXiv:2106.04560)."""
    timescale = own["timescale"] or place.warmup or 10_000
    return 1.0 / math.sqrt(1.0 + (place.step - place.warmup) / timescale)


def _wsd(place: Place, own: Own) -> float:
    """Warm-up, stable, decay (arXiv:2404.06395): the full rate until the last ``decay_share`` of all steps."""
    start = max(place.warmup, place.total - math.ceil(own["decay_share"] * place.total))
    return _ending(_FALLS[own["decay_curve"]](place.since(start)), own)


CURVES: Mapping[str, Callable[[Place, Own], float]] = {
    "constant": lambda place, own: 1.0,
    "linear": lambda place, own: _ending(_FALLS["linear"](place.progress), own),
    "cosine": lambda place, own: _ending(_FALLS["cosine"](place.progress), own),
    "cosine_restarts": _cosine_restarts,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
}
"""Name -> factor at a place after the warm-up."""


def factor(spec: ScheduleSpec, step: int, total: int) -> float:
    """The factor for optimizer step ``step`` (0-based) of ``total``."""
    warmup = spec.warmup(total)
    if step < warmup:
        return (step + 1) / warmup
    return CURVES[spec.name](Place(step, warmup, total), spec.own)
