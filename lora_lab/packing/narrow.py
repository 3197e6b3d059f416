"""Low-rank paths of float32 factors on a CPU: all lanes of a product in one call of a kernel.

The factors are read where they lie. Nothing is stacked, padded or cast, and products are made in float32, as stock PEFT
makes them for float32 adapters of a 16-bit model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_lab.packing import native
from lora_lab.packing.dropout import limit_of
from lora_lab.packing.phases import computed, phase

_SHAPE = ("start", "rows", "r", "column", "out")
_NOISE = ("seed", "limit", "keep", "scaling")
_LANE = np.dtype(
    [(name, np.int64) for name in ("A", "B", "dA", "dB", "h", "dh", "bt", "kept", *_SHAPE)]
    + list(zip(_NOISE, (np.uint32, np.uint32, np.float32, np.float32), strict=True))
)
"""``Lane`` of native/lowrank.hpp."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """One lane's rows ``start … start + rows`` at one module, whose outputs begin at ``column``.

    ``A (r, in)`` and ``B (out, r)`` make the update ``scaling B A``; ``p`` and ``seed`` are of its dropout.
    """

    A: Tensor
    B: Tensor
    scaling: float
    start: int
    rows: int
    column: int
    p: float = 0.0
    seed: int = 0


class Narrow:
    """The paths of ``stretches`` on one product. Modules of one lane stand one after another."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self.factors = [f.contiguous() for s in stretches for f in (s.A, s.B)]
        self._sizes = [f.numel() for f in self.factors]
        shapes = [(s.start, s.rows, s.A.shape[0], s.column, s.B.shape[0]) for s in stretches]
        noises = [(s.seed, limit_of(s.p), 1.0 / (1.0 - s.p) if s.p else 0.0, s.scaling) for s in stretches]
        self._lanes = np.zeros(len(stretches), dtype=_LANE)
        for fields, values in ((_SHAPE, shapes), (_NOISE, noises)):
            for field, column in zip(fields, zip(*values, strict=True), strict=True):
                self._lanes[field] = column
        self._products = self._lanes["rows"] * self._lanes["r"]
        self._outputs = self._lanes["out"] * self._lanes["r"]
        self._dropping = self._lanes["keep"] > 0.0

    def add(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Add to ``y (rows, width)`` what the lanes make of ``x (rows, in)``; gives what :meth:`back` needs.

        That is the products with ``A``, and a bit for each element that dropout looked at: whether it was kept.
        """
        computed(lambda: self._flops(x))
        inner = x.new_empty(int(self._products.sum()), dtype=torch.float32)
        kept = x.new_empty(int(self._words(x).sum()), dtype=torch.int16)
        transposed = x.new_empty(int(self._outputs.sum()), dtype=torch.float32)
        if not native.without_data(x):
            lanes = self._point(inner, transposed, kept, x)
            native.call("add_low_rank", x, x.shape[1], y, y.shape[1], lanes.ctypes.data, len(lanes))
        return inner, kept

    def back(self, x: Tensor, dy: Tensor, dx: Tensor | None, inner: Tensor, kept: Tensor) -> list[Tensor]:
        """Add to ``dx`` the lanes' gradient of ``x``; gives those of :attr:`factors`."""
        computed(lambda: 2 * self._flops(x) - (2 * x.shape[1] * int(self._products.sum()) if dx is None else 0))
        dinner = torch.empty_like(inner)
        transposed = x.new_empty(int(self._outputs.sum()), dtype=torch.float32)
        with phase("gradients"):
            flat = x.new_empty(sum(self._sizes), dtype=torch.float32)
        grads = [part.view_as(f) for part, f in zip(flat.split(self._sizes), self.factors, strict=True)]
        if not native.without_data(x):
            lanes = self._point(inner, transposed, kept, x)
            lanes["dh"] = dinner.data_ptr() + 4 * (np.cumsum(self._products) - self._products)
            starts = flat.data_ptr() + 4 * (np.cumsum(self._sizes) - self._sizes)
            lanes["dA"], lanes["dB"] = starts[::2], starts[1::2]
            native.call("add_low_rank_backward", x, x.shape[1], dy, dy.shape[1], dx, lanes.ctypes.data, len(lanes))
        return grads

    def _flops(self, x: Tensor) -> int:
        """Of the products with all lanes' ``A`` and ``B``."""
        return 2 * int((self._products * (x.shape[1] + self._lanes["out"])).sum())

    def _words(self, x: Tensor) -> np.ndarray:
        """How many 16-bit words of ``kept`` are each stretch's."""
        return np.where(self._dropping, self._lanes["rows"] * -(-x.shape[1] // 16), 0)

    def _point(self, inner: Tensor, transposed: Tensor, kept: Tensor, x: Tensor) -> np.ndarray:
        """The lanes with the addresses of what they read, and of where their products go."""
        lanes, words = self._lanes, self._words(x)
        addresses = [f.data_ptr() for f in self.factors]
        lanes["A"], lanes["B"] = addresses[::2], addresses[1::2]
        lanes["h"] = inner.data_ptr() + 4 * (np.cumsum(self._products) - self._products)
        lanes["bt"] = transposed.data_ptr() + 4 * (np.cumsum(self._outputs) - self._outputs)
        lanes["kept"] = np.where(self._dropping, kept.data_ptr() + 2 * (np.cumsum(words) - words), 0)
        return lanes
