"""Sequences that begin alike, so that each distinct beginning is computed once.

Questions of a benchmark share their instructions, answers their question. Sorted, each sequence adds to the one before
it only what comes after their common beginning; these additions, one after another, are the rows of a forward, and
attention (:mod:`lora_lab.bench.shared`) looks back along each sequence's own path. Plain numbers: no tensor is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """Token ids, of which those from ``start`` on are to be judged. Ids below 0 are a lane's own virtual tokens."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True, eq=False)
class Segment:
    """What one sequence adds to a pass: its rows ``first … first + rows``, and the places that it reads.

    ``path`` are those places, from the sequence's first token on: what is carried comes first, then the pass's rows.
    """

    first: int
    rows: int
    path: Ints


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward: the rows of every lane, and which earlier rows they still read.

    ``kept``: places (carried, then rows) of the pass before that this one carries on; ``common``: how many of them all
    segments read. ``labels`` are asked at ``asked`` (rows, ascending).
    """

    tokens: Ints
    positions: Ints
    segments: tuple[Segment, ...]
    kept: Ints
    common: int
    asked: Ints
    labels: Ints


@dataclass(frozen=True, eq=False)
class Plan:
    """The passes in order. ``queries``: for each request the places of its tokens among all that is asked."""

    passes: tuple[Pass, ...]
    queries: tuple[Ints, ...]

    @property
    def rows(self) -> int:
        """Rows of all passes."""
        return sum(len(step.tokens) for step in self.passes)


def plan(requests: Sequence[Asked], rows: int) -> Plan:
    """Lay out ``requests`` in passes of about ``rows`` rows. The last token of each is judged and never read."""
    inputs: dict[tuple[int, ...], list[int]] = {}
    for i, request in enumerate(requests):
        inputs.setdefault(request.ids[:-1], []).append(i)
    paths: dict[tuple[int, ...], Ints] = {}
    layout: list[tuple[tuple[int, ...], int]] = []
    before: tuple[int, ...] = ()
    path = np.empty(0, np.int64)
    total = 0
    for ids in sorted(inputs):
        shared = _shared(before, ids)
        path = np.concatenate([path[:shared], np.arange(total, total + len(ids) - shared)])
        total += len(ids) - shared
        paths[ids] = path
        layout.append((ids, shared))
        before = ids
    nodes, labels, sizes = [], [], []
    for request in requests:
        nodes.append(paths[request.ids[:-1]][request.start - 1 :])
        labels.append(np.array(request.ids[request.start :], np.int64))
        sizes.append(len(request.ids) - request.start)
    width = 1 + max((max(request.ids) for request in requests), default=0)
    codes = np.concatenate(nodes) * width + np.concatenate(labels) if nodes else np.empty(0, np.int64)
    every, inverse = np.unique(codes, return_inverse=True)
    passes = _passes(layout, paths, every // width, every % width, rows)
    return Plan(tuple(passes), tuple(np.split(inverse, np.cumsum(sizes)[:-1])) if sizes else ())


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Tokens that ``a`` and ``b`` have in common at their beginnings."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle)
    return low


def _passes(
    layout: Sequence[tuple[tuple[int, ...], int]],
    paths: dict[tuple[int, ...], Ints],
    nodes: Ints,
    labels: Ints,
    rows: int,
) -> list[Pass]:
    groups: list[list[tuple[tuple[int, ...], int]]] = []
    filled = 0
    for ids, shared in layout:
        if not groups or filled + len(ids) - shared > rows:
            groups.append([])
            filled = 0
        groups[-1].append((ids, shared))
        filled += len(ids) - shared
    out: list[Pass] = []
    begin = 0
    last = np.empty(0, np.int64)
    for group in groups:
        carried = group[0][1]
        segments, tokens, positions = [], [], []
        first = 0
        for ids, shared in group:
            path = paths[ids]
            local = np.where(path >= begin, path - begin + carried, np.arange(len(path)))
            segments.append(Segment(first, len(ids) - shared, local))
            tokens.append(np.array(ids[shared:], np.int64))
            positions.append(np.arange(shared, len(ids)))
            first += len(ids) - shared
        a, b = np.searchsorted(nodes, [begin, begin + first])
        out.append(
            Pass(
                tokens=np.concatenate(tokens),
                positions=np.concatenate(positions),
                segments=tuple(segments),
                kept=last[:carried],
                common=min(shared for _, shared in group),
                asked=nodes[a:b] - begin,
                labels=labels[a:b],
            )
        )
        begin += first
        last = segments[-1].path
    return out
