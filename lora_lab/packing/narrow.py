"""Low-rank paths of float32 factors on a CPU: all lanes of a product in one call of a kernel.

The factors are read where they lie. Nothing is stacked, padded or cast, and products are made in float32, as stock PEFT
makes them for float32 adapters of a 16-bit model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_lab.methods import LowRank
from lora_lab.packing import native
from lora_lab.packing.dropout import limit_of
from lora_lab.packing.phases import phase

_LANE = np.dtype(
    [(name, np.uint64) for name in ("A", "B", "dA", "dB", "h", "dh", "bt")]
    + [(name, np.int64) for name in ("start", "rows", "r", "column", "out")]
    + [("seed", np.uint32), ("limit", np.uint32), ("keep", np.float32), ("scaling", np.float32)]
)
"""``Lane`` of native/lowrank.hpp."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """One lane's rows ``start … start + rows`` at one module, whose outputs begin at ``column``.

    ``p`` and ``seed`` are of its dropout.
    """

    factor: LowRank
    start: int
    rows: int
    column: int
    p: float = 0.0
    seed: int = 0


class Narrow:
    """The paths of ``stretches`` on one product. Modules of one lane stand one after another."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self.stretches = stretches
        self.factors = [f for s in stretches for f in (s.factor.A, s.factor.B)]
        self._products = np.array([s.rows * len(s.factor.A) for s in stretches])
        self._outputs = np.array([s.factor.B.numel() for s in stretches])

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Add to ``y (rows, width)`` what the lanes make of ``x (rows, in)``; gives what :meth:`back` needs."""
        inner = x.new_empty(int(self._products.sum()), dtype=torch.float32)
        transposed = x.new_empty(int(self._outputs.sum()), dtype=torch.float32)
        if not native.without_data(x):
            lanes = self._lanes(inner, transposed)
            native.call("add_low_rank", x, x.shape[1], y, y.shape[1], lanes.ctypes.data, len(lanes))
        return inner

    def back(self, x: Tensor, dy: Tensor, dx: Tensor | None, inner: Tensor) -> list[Tensor]:
        """Add to ``dx`` the lanes' gradient of ``x``; gives those of :attr:`factors`."""
        dinner = torch.empty_like(inner)
        transposed = x.new_empty(int(self._outputs.sum()), dtype=torch.float32)
        sizes = [f.numel() for f in self.factors]
        with phase("gradients"):
            flat = x.new_empty(sum(sizes), dtype=torch.float32)
        grads = [part.view_as(f) for part, f in zip(flat.split(sizes), self.factors, strict=True)]
        if not native.without_data(x):
            lanes = self._lanes(inner, transposed)
            lanes["dh"] = lanes["h"] - np.uint64(inner.data_ptr()) + np.uint64(dinner.data_ptr())
            starts = np.uint64(flat.data_ptr()) + 4 * np.array([0, *itertools.accumulate(sizes)], dtype=np.uint64)
            lanes["dA"], lanes["dB"] = starts[:-1:2], starts[1::2]
            native.call("add_low_rank_backward", x, x.shape[1], dy, dy.shape[1], dx, lanes.ctypes.data, len(lanes))
        return grads

    def _lanes(self, inner: Tensor, transposed: Tensor) -> np.ndarray:
        lanes = np.zeros(len(self.stretches), dtype=_LANE)
        pointers = np.array([f.data_ptr() for f in self.factors], dtype=np.uint64)
        lanes["A"], lanes["B"] = pointers[::2], pointers[1::2]
        lanes["h"] = inner.data_ptr() + 4 * (np.cumsum(self._products) - self._products).astype(np.uint64)
        lanes["bt"] = transposed.data_ptr() + 4 * (np.cumsum(self._outputs) - self._outputs).astype(np.uint64)
        for name in ("start", "rows", "column", "seed"):
            lanes[name] = [getattr(s, name) for s in self.stretches]
        lanes["r"] = [len(s.factor.A) for s in self.stretches]
        lanes["out"] = [len(s.factor.B) for s in self.stretches]
        lanes["scaling"] = [s.factor.scaling for s in self.stretches]
        lanes["keep"] = [1.0 / (1.0 - s.p) if s.p else 0.0 for s in self.stretches]
        lanes["limit"] = [limit_of(s.p) for s in self.stretches]
        return lanes
