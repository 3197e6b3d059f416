"""What a step holds, moment by moment: its peak, and what the peak is with more layers or more lanes.

Layers that are alike do alike. In a model with one more of them each moment of a layer holds as many bytes more as
the layer added, and the moments of the layers between the lowest and the highest lie evenly between theirs; so the
peak is at one of the two ends, and two traces of a model cut short give the peak of the whole one, to the byte.
Where the two do not fit together in this way, :func:`extended` says so, and the whole model is traced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Label = tuple[str, int]
"""A stretch of a step: ``("forward", layer)``, ``("backward", layer)``, or what comes between, with 0."""


@dataclass(frozen=True)
class Crest:
    """A moment of a step: bytes of shared parts, bytes of a lane's own parts, and all parts by name."""

    shared: int
    own: int
    parts: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Timeline:
    """The moments of a step.

    Of each moment the operator's name, and the live bytes of each part, ``(moments, parts)``; ``marks`` say at which
    moment each stretch begins, in order. ``flops`` are those of the whole step; a share of what is done every few steps
    is no whole number.
    """

    parts: tuple[str, ...]
    names: tuple[str, ...]
    bytes: np.ndarray
    marks: tuple[tuple[Label, int], ...]
    flops: int | Fraction

    @staticmethod
    def of(
        parts: Sequence[str],
        moments: Sequence[tuple[str, tuple[int, ...]]],
        marks: Sequence[tuple[Label, int]],
        flops: int | Fraction,
    ) -> Timeline:
        """From what a ledger has noted."""
        held = np.array([live for _, live in moments], dtype=np.int64).reshape(len(moments), len(parts))
        return Timeline(tuple(parts), tuple(name for name, _ in moments), held, tuple(marks), flops)

    def stretches(self) -> dict[Label, slice]:
        """Where each stretch lies."""
        ends = [at for _, at in self.marks[1:]] + [len(self.names)]
        return {label: slice(at, end) for (label, at), end in zip(self.marks, ends, strict=True)}

    def crests(self, shared: Collection[str]) -> tuple[Crest, ...]:
        """The moments that can be the peak for some number of lanes.

        Lanes that do the same hold the parts in ``shared`` once and all others once each. None of the moments given
        is below another one both in shared and in other bytes.
        """
        common = np.array([part in shared for part in self.parts])
        once, each = self.bytes[:, common].sum(1), self.bytes[:, ~common].sum(1)
        found: list[Crest] = []
        highest = -1
        for i in np.lexsort((-each, -once)):
            if each[i] > highest:
                highest = int(each[i])
                held = {part: int(size) for part, size in zip(self.parts, self.bytes[i], strict=True) if size}
                found.append(Crest(int(once[i]), highest, held))
        return tuple(found)


def extended(short: Timeline, long: Timeline, layers: int, period: int, times: int) -> Timeline | None:
    """The moments of a model that has ``times`` periods of layers more than ``short``, where they can be a peak.

    Args:
        short: the step of ``layers`` layers, at least two periods of them.
        long: the step of one period more.
        layers, period: the number of ``short``'s layers, and after how many of them they repeat.
        times: how many periods are added to ``short``.

    ``None`` where a layer of ``long`` does something else than the one of ``short`` that it should repeat.
    """
    mine, other = short.stretches(), long.stretches()
    if not _marked(mine, layers) or not _marked(other, layers + period):
        return None
    mine_rows: list[np.ndarray] = []
    other_rows: list[np.ndarray] = []
    for one, two in _pairs(mine, layers, period):
        rows = _matched(short.names, mine[one], long.names, other[two], whole=one[0] != "after")
        if rows is None:
            return None
        mine_rows.append(rows[0])
        other_rows.append(rows[1])
    at, then = np.concatenate(mine_rows), np.concatenate(other_rows)
    held = short.bytes[at] + times * (long.bytes[then] - short.bytes[at])
    flops = short.flops + times * (long.flops - short.flops)
    return Timeline(short.parts, tuple(short.names[i] for i in at), held, (), flops)


def _marked(stretches: Mapping[Label, slice], layers: int) -> bool:
    """Every layer went forward once, and backward once or none of them did."""
    forward = [layer for kind, layer in stretches if kind == "forward"]
    backward = [layer for kind, layer in stretches if kind == "backward"]
    return forward == list(range(layers)) and backward in ([], list(reversed(range(layers))))


def _pairs(stretches: Mapping[Label, slice], layers: int, period: int) -> Iterator[tuple[Label, Label]]:
    """Stretches of the short step, and those of the long one that stand as far from the bottom, or from the top."""
    for kind, layer in stretches:
        yield (kind, layer), (kind, layer)
        if kind in ("forward", "backward") and layer >= layers - period:
            yield (kind, layer), (kind, layer + period)


def _matched(
    short: Sequence[str], a: slice, long: Sequence[str], b: slice, *, whole: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Moments of ``short[a]`` and those of ``long[b]`` that do the same: all of them where the two are as long.

    Else (where ``whole`` is not asked for) those that stand as far from the beginning, and as far from the end: an
    optimizer does one thing for each parameter, and so more of them in a deeper model.
    """
    mine, other = short[a], long[b]
    if mine == other:
        return np.arange(a.start, a.stop), np.arange(b.start, b.stop)
    ahead, behind = _same(mine, other), _same(mine[::-1], other[::-1])
    if whole or ahead + behind < len(mine):
        return None
    return (
        np.r_[a.start : a.start + ahead, a.stop - behind : a.stop],
        np.r_[b.start : b.start + ahead, b.stop - behind : b.stop],
    )


def _same(one: Sequence[str], other: Sequence[str]) -> int:
    """With how many equal names the two begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
