"""Which lanes of a step go through the base together.

On a CPU a forward and backward over very many rows is slower than two over half of them: what lies between two matrix
products no longer fits the last cache. So a step of many lanes is several passes, each of whole lanes, and their
activations are held one pass at a time. What a lane computes does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

PASS_ROWS = 2048
"""Rows that a pass on a CPU is filled to; measured with hidden sizes of 576 and up (benchmarks/packed_step.py)."""


def passes(rows: Sequence[int], kernels: str, alone: Collection[int] = ()) -> list[list[int]]:
    """Indices of lanes with so many ``rows`` each, pass by pass. ``kernels`` as in ``Layout``.

    Lanes ``alone`` have a forward of their own. On CUDA all others go together.
    """
    together = [lane for lane in range(len(rows)) if lane not in alone]
    found = _filled([rows[lane] for lane in together]) if kernels == "cpu" else [list(range(len(together)))]
    return [[together[place] for place in lanes] for lanes in found if lanes] + [[lane] for lane in sorted(alone)]


def _filled(rows: Sequence[int]) -> list[list[int]]:
    """In order, each of about as many rows."""
    count = max(1, math.ceil(sum(rows) / PASS_ROWS))
    out: list[list[int]] = [[]]
    held, left = 0, sum(rows)
    for lane, own in enumerate(rows):
        if out[-1] and held + own / 2 > left / count:
            out.append([])
            left, held, count = left - held, 0, max(1, count - 1)
        out[-1].append(lane)
        held += own
    return out
