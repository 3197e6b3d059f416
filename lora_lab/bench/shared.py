"""Attention over sequences that share their beginnings, for several lanes at once.

All lanes read the same tokens, so all have the same rows, a lane's together. A row attends along its own sequence's
path: what all sequences of the pass have in common is one matrix product for all rows of a lane, the rest of each path
is gathered. On a CPU one kernel does that for stretches of rows as they are (:mod:`lora_lab.packing.native`); else they
are gathered into buckets of like sizes. Padding repeats a lane's own rows; no lane reads another's numbers (0 x NaN is
NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lora_lab.bench.beginnings import Ints, Pass, Segment
from lora_lab.packing import native
from lora_lab.packing.layout import Layout

WASTE = 0.3
"""Padding that a bucket's scores may hold, as a share of them, before a new bucket is begun."""

COMMON = 48
"""So many places that all segments have in common are worth a matrix product of their own beside the kernel."""
STRETCH = 32
"""Rows that the kernel computes at once."""

Carried = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, ``(kv, lanes, places, d)`` each."""


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Segments of like sizes, filled up at their beginnings: ``queries (s, m)`` are rows, ``keys (s, o)`` places.

    ``depths (s, m)`` and ``key_depths (s, o)`` are positions in the sequence, -1 for keys that only fill up. ``real``
    are the flat queries that do not, ``rows`` theirs.
    """

    queries: Tensor
    keys: Tensor
    depths: Tensor
    key_depths: Tensor
    real: Tensor
    rows: Tensor


class SharedLayout(Layout):
    """The rows of one :class:`Pass` for ``lanes`` lanes, a lane's rows together."""

    def __init__(self, step: Pass, lanes: int, device: torch.device, before: Carried) -> None:
        self.lengths = [int(step.positions.max()) + 1] if len(step.positions) else [1]
        self.device, self.kernels = device, device.type
        n = len(step.tokens)
        self.rows = lanes * n
        self.spans = [(i * n, (i + 1) * n) for i in range(lanes)]
        self.positions = torch.from_numpy(step.positions).repeat(lanes).unsqueeze(0).to(device)
        self.attention = self.shared = _Attention(step, lanes, device, before)


class _Attention:
    """One pass's attention; called once a layer, in order. ``layers`` are the keys and values it met."""

    def __init__(self, step: Pass, lanes: int, device: torch.device, before: Carried) -> None:
        self.lanes, self.n, self.common, self.device = lanes, len(step.tokens), step.common, device
        self.step = step
        kept = torch.from_numpy(step.kept).to(device)
        self.before = [(k.index_select(2, kept), v.index_select(2, kept)) for k, v in before] if len(kept) else []
        self.layers: Carried = []
        self._hidden: dict[tuple[int, int | None], Tensor] = {}

    @cached_property
    def _buckets(self) -> list[_Bucket]:
        return _buckets(self.step, self.device)

    @cached_property
    def _stretches(self) -> tuple[Tensor, Tensor]:
        return _stretches(self.step)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None, window: int | None
    ) -> Tensor:
        """See :class:`~lora_lab.packing.layout.Attention`."""
        k, v = (x.reshape(len(x), self.lanes, self.n, -1) for x in (key, value))
        if self.before:
            old = self.before[len(self.layers)]
            k, v = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)
        self.layers.append((k, v))
        if softcap is None and k.shape[3] == v.shape[3] and native.usable(query):
            return self._by_kernel(query, k, v, scaling, window)
        kv, groups = len(key), len(query) // len(key)
        q = query.view(kv, groups, self.lanes, self.n, -1).permute(0, 2, 3, 1, 4).contiguous()
        out = q.new_empty(kv, self.lanes, self.n, groups, v.shape[-1])
        for i, bucket in enumerate(self._buckets):
            hidden = self._hidden_of(i, window)
            found = _attend(q, k, v, bucket, hidden, self.common, scaling, softcap)
            out.index_copy_(2, bucket.rows, found.index_select(2, bucket.real))
        return out.permute(1, 2, 0, 3, 4).reshape(self.lanes * self.n, -1)

    def _by_kernel(self, query: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None) -> Tensor:
        """What all segments have in common is a product for all rows, if that is much; the kernel does the rest."""
        (kv, lanes, places, d), heads = k.shape, len(query)
        common = self.common if self.common >= COMMON else 0
        query, k, v = query.contiguous(), k.contiguous(), v.contiguous()
        first, second = (self._of_heads(x[:, :, :common], heads // kv) for x in (k, v))
        scores = torch.bmm(query.view(heads * lanes, self.n, d), first.transpose(1, 2)) if common else None
        out = query.new_empty(lanes * self.n, heads * d)
        stretches, paths = self._stretches
        sizes = (len(stretches), lanes, kv, heads // kv, self.n, places, common, d)
        seen = places + self.n if window is None else window
        native.call("path_attention", query, k, v, scores, out, stretches, paths, *sizes, seen, float(scaling))
        if scores is not None:
            out.view(-1, heads, d).add_(torch.bmm(scores, second).view(heads, -1, d).transpose(0, 1))
        return out

    def _of_heads(self, x: Tensor, groups: int) -> Tensor:
        """``(heads lanes, places, d)`` of ``x (kv, lanes, places, d)``."""
        kv, lanes, places, d = x.shape
        return x.unsqueeze(1).expand(kv, groups, lanes, places, d).reshape(kv * groups * lanes, places, d)

    def _hidden_of(self, i: int, window: int | None) -> Tensor:
        """``(s, m, common + o)``: which places a query does not see."""
        if (i, window) not in self._hidden:
            bucket = self._buckets[i]
            s = len(bucket.depths)
            common = torch.arange(self.common, device=self.device).expand(s, -1)
            depths = torch.cat([common, bucket.key_depths], 1).unsqueeze(1)
            here = bucket.depths.unsqueeze(2)
            hidden = (depths > here) | (depths < 0)
            self._hidden[i, window] = hidden if window is None else hidden | (depths <= here - window)
        return self._hidden[i, window]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: _Bucket,
    hidden: Tensor,
    common: int,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """``(kv, lanes, s m, groups, d)`` for a bucket's queries; ``q (kv, lanes, n, groups, d)``."""
    kv, lanes, _, groups, d = q.shape
    (s, m), o = bucket.queries.shape, bucket.keys.shape[1]
    queries = q.index_select(2, bucket.queries.flatten())
    keys, values = (x.index_select(2, bucket.keys.flatten()).view(kv * lanes * s, o, -1) for x in (k, v))
    scores = torch.bmm(queries.view(kv * lanes * s, m * groups, d), keys.transpose(1, 2))
    if common:
        shared = k[:, :, :common].reshape(kv * lanes, common, d)
        wide = torch.bmm(queries.view(kv * lanes, s * m * groups, d), shared.transpose(1, 2))
        scores = torch.cat([wide.view(kv * lanes * s, m * groups, common), scores], 2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    by_query = scores.view(kv * lanes, s, m, groups, common + o)
    by_query.masked_fill_(hidden[None, :, :, None, :], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    found = torch.bmm(weights[:, :, common:], values)
    if common:
        over = weights[:, :, :common].reshape(kv * lanes, s * m * groups, common)
        found += torch.bmm(over, v[:, :, :common].reshape(kv * lanes, common, -1)).view_as(found)
    return found.view(kv, lanes, s * m, groups, -1)


def _stretches(step: Pass) -> tuple[Tensor, Tensor]:
    """``(stretches, 4)``: first row, rows, where the path of the last one begins, its length; and all the paths."""
    table, begin = [], 0
    for segment in step.segments:
        length = len(segment.path)
        for a in range(0, segment.rows, STRETCH):
            rows = min(STRETCH, segment.rows - a)
            table.append((segment.first + a, rows, begin, length - segment.rows + a + rows))
        begin += length
    paths = np.concatenate([segment.path for segment in step.segments])
    return torch.tensor(table, dtype=torch.int64).reshape(len(table), 4), torch.from_numpy(paths)


def _buckets(step: Pass, device: torch.device) -> list[_Bucket]:
    order = sorted(
        (segment for segment in step.segments if segment.rows),
        key=lambda segment: (-(len(segment.path) - step.common), -segment.rows),
    )
    groups: list[list[Segment]] = []
    used = m = 0
    for segment in order:
        own = len(segment.path) - step.common
        if groups:
            longest = len(groups[-1][0].path) - step.common
            wide = max(m, segment.rows)
            if used + segment.rows * own >= (1 - WASTE) * wide * longest * (len(groups[-1]) + 1):
                groups[-1].append(segment)
                used, m = used + segment.rows * own, wide
                continue
        groups.append([segment])
        used, m = segment.rows * own, segment.rows
    return [_bucket(members, step.common, device) for members in groups]


def _bucket(members: Sequence[Segment], common: int, device: torch.device) -> _Bucket:
    m = max(segment.rows for segment in members)
    o = max(len(segment.path) for segment in members) - common
    queries = np.empty((len(members), m), np.int64)
    depths = np.empty_like(queries)
    keys = np.empty((len(members), o), np.int64)
    key_depths = np.empty_like(keys)
    real = np.zeros((len(members), m), bool)
    for i, segment in enumerate(members):
        length, own = len(segment.path), len(segment.path) - common
        queries[i] = segment.first
        depths[i] = length - segment.rows
        queries[i, m - segment.rows :] = np.arange(segment.first, segment.first + segment.rows)
        depths[i, m - segment.rows :] = np.arange(length - segment.rows, length)
        real[i, m - segment.rows :] = True
        keys[i], key_depths[i] = segment.path[-1], -1
        keys[i, o - own :] = segment.path[common:]
        key_depths[i, o - own :] = np.arange(common, length)
    places = real.ravel().nonzero()[0]

    def tensor(array: Ints) -> Tensor:
        return torch.from_numpy(array).to(device)

    rows = queries.ravel()[places]
    return _Bucket(tensor(queries), tensor(keys), tensor(depths), tensor(key_depths), tensor(places), tensor(rows))
