"""Where each lane's tokens lie in a packed forward.

A pack's forward has no padding: the tokens of all sequences of all lanes stand one after another as the
rows of one ``(1, rows, d)`` tensor, a lane's sequences together. Linear layers, norms and MLPs see only
rows; attention (:mod:`lora_lab.packing.attention`) sees sequences, gathered into buckets of like length.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BUCKET_WASTE = 0.15
"""Padding that a bucket of sequences may hold, as a share of its positions, before a new one is begun."""


class Attention(Protocol):
    """Attention of a layout's own: rotated ``query (heads, rows, d)`` and ``key, value (kv, rows, d)`` of one layer
    after another, to ``(rows, heads d)``."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None, window: int | None
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Bucket:
    """Sequences of like length, as attention computes them.

    ``rows``: ``(sequences, length)`` row of each position; positions past a sequence's end repeat its own
    last row, so that no lane reads another's numbers (0 x NaN is NaN); in ``index`` they are -1. ``real``:
    ``(tokens,)`` flat positions that are not such repeats; ``owners``: ``(tokens,)`` their rows.
    """

    rows: Tensor
    index: Tensor
    real: Tensor
    owners: Tensor


class Layout:
    """The sequences of one packed forward.

    Args:
        lengths: tokens of each sequence, in row order.
        groups: how many of the sequences belong to each lane, in row order; they add up.
        device: where the index tensors are.
        kernels: ``cpu`` or ``cuda``, whose attention computes it (default: the device's). The planner's tensors
            have no data and stand on the CPU, also when the pack will train on CUDA.

    Attributes:
        positions: ``(1, rows)`` position of each token in its sequence.
        spans: first and past-the-last row of each lane.
        buckets: the sequences in buckets of like length, longest first.
        restore: ``(rows,)``: where each row stands when the buckets' real positions are put one after another.
        attention: how rows attend where it is not within sequences (:mod:`lora_lab.bench.shared`).
    """

    attention: Attention | None = None

    def __init__(
        self, lengths: Sequence[int], groups: Sequence[int], device: torch.device, kernels: str | None = None
    ) -> None:
        assert sum(groups) == len(lengths)
        self.lengths = list(lengths)
        self.device = device
        self.kernels = kernels or device.type
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        self.starts = starts
        self.rows = starts[-1]
        bounds = [0]
        for count in groups:
            bounds.append(bounds[-1] + count)
        self.spans: list[tuple[int, int]] = [(starts[a], starts[b]) for a, b in itertools.pairwise(bounds)]
        parts = [torch.arange(length) for length in self.lengths]
        self.positions = torch.cat(parts).unsqueeze(0).to(device)
        self.buckets = self._buckets()
        self.restore = self._restore()

    def _buckets(self) -> list[Bucket]:
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        groups: list[list[int]] = []
        used = 0
        for i in order:
            if groups:
                longest = self.lengths[groups[-1][0]]
                size = longest * (len(groups[-1]) + 1)
                if size - used - self.lengths[i] <= BUCKET_WASTE * size:
                    groups[-1].append(i)
                    used += self.lengths[i]
                    continue
            groups.append([i])
            used = self.lengths[i]
        return [self._bucket(members) for members in groups]

    def _restore(self) -> Tensor:
        owners = torch.cat([bucket.owners for bucket in self.buckets])
        order = torch.empty_like(owners)
        order[owners] = torch.arange(self.rows, device=self.device)
        return order

    def _bucket(self, members: list[int]) -> Bucket:
        lengths = torch.tensor([self.lengths[i] for i in members]).unsqueeze(1)
        starts = torch.tensor([self.starts[i] for i in members]).unsqueeze(1)
        offsets = torch.arange(int(lengths.max())).unsqueeze(0)
        rows = starts + torch.minimum(offsets, lengths - 1)
        real = (offsets < lengths).flatten().nonzero().squeeze(1)
        return Bucket(
            rows=rows.to(self.device),
            index=torch.where(offsets < lengths, rows, -1).to(self.device),
            real=real.to(self.device),
            owners=rows.flatten()[real].to(self.device),
        )
