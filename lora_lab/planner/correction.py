"""What runs really took beside what was predicted, and what that teaches about the next prediction.

A prediction counts live tensors. An allocator keeps more than is alive, and kernels work in memory of their own; how
much depends on the device. Each settled run says what was predicted for its pack and what was measured, so what one
worker of a sweep learns all of them know, and later plans on the same device are multiplied with it.
"""

from __future__ import annotations

from collections.abc import Iterable

ENOUGH = 3
"""Measurements before which nothing is corrected."""
MEANINGFUL = 2**28
"""Bytes of a prediction below which a measurement says nothing: a process's own needs are as large."""


def correction(measured: Iterable[tuple[int, int]]) -> float:
    """By what predictions for a device are to be multiplied: 1 until enough is known, never below 1.

    Of pairs of predicted and measured bytes the upper quartile of the ratio: three of four runs took no more.
    """
    ratios = sorted(got / said for said, got in measured if said >= MEANINGFUL and got > 0)
    return max(1.0, ratios[(3 * len(ratios)) // 4]) if len(ratios) >= ENOUGH else 1.0
