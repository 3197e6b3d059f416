"""Random choices that are the same on every machine and under every Python.

Only :meth:`random.Random.random` and seeding by a string are promised to give the same sequence for ever, so every
choice is made from those two (``choice``, ``sample`` and ``shuffle`` may change between Python versions).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A seeded source of choices; equal seeds give equal choices."""

    __slots__ = ("_next",)

    def __init__(self, seed: str) -> None:
        self._next = random.Random(seed).random

    def below(self, n: int) -> int:
        """A whole number in ``0 .. n - 1``."""
        return int(self._next() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number in ``low .. high``, both included."""
        return low + int(self._next() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[int(self._next() * len(items))]

    def draw(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different positions of ``items``, in random order."""
        taken: list[int] = []
        while len(taken) < count:
            i = int(self._next() * len(items))
            if i not in taken:
                taken.append(i)
        return [items[i] for i in taken]
