"""The frozen linear modules that read one input, as one product.

``query``, ``key`` and ``value`` read the same rows, and so do a gated MLP's first two: their weights are one matrix, of
which the modules hold views, so that nothing is held twice. Those of a shared file lie so already
(:mod:`lora_lab.models.shared`), others are laid side by side. A quantised weight is de-quantised once for all lanes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_lab.methods.targets import linear_shape
from lora_lab.models import frozen_weight
from lora_lab.packing.phases import phase
from lora_lab.packing.unpacking import unpacked


class Frozen:
    """``modules`` (one, or several with equal inputs) as one frozen linear map.

    ``columns`` are the first and past-the-last output column of each. ``kernels`` as in ``Layout``.
    """

    def __init__(self, names: Sequence[str], modules: Sequence[nn.Module], kernels: str) -> None:
        self.names, self.modules, self._kernels = tuple(names), tuple(modules), kernels
        self._merged: Tensor | None = None
        self._moved = False
        bounds = [0, *itertools.accumulate(linear_shape(module)[1] for module in modules)]
        self.columns: tuple[tuple[int, int], ...] = tuple(itertools.pairwise(bounds))
        self._plain = all(module.weight.is_floating_point() for module in modules)  # type: ignore[operator]
        if len(modules) > 1 and self._plain:
            weights = [frozen_weight(module) for module in modules]
            self._merged = _side_by_side(weights)
            if self._merged is None:
                self._move(weights)
        self.bias = self._merged_bias()

    def _move(self, weights: Sequence[Tensor]) -> None:
        with phase("weights"), torch.no_grad():
            self._merged = torch.cat(list(weights))
        for module, (a, b) in zip(self.modules, self.columns, strict=True):
            module.weight.data = self._merged[a:b]
        self._moved = True

    def _merged_bias(self) -> Tensor | None:
        biases = [getattr(module, "bias", None) for module in self.modules]
        if len(biases) == 1 or all(bias is None for bias in biases):
            return biases[0]
        like = next(bias for bias in biases if bias is not None)
        return torch.cat(
            [
                bias.detach() if bias is not None else like.new_zeros(b - a)
                for bias, (a, b) in zip(biases, self.columns, strict=True)
            ]
        )

    @property
    def weight(self) -> Tensor:
        """``(out, in)``, the modules' outputs one after another; where they are quantised, de-quantised each time."""
        if self._merged is not None:
            return self._merged
        if len(self.modules) == 1 and self._plain:
            return frozen_weight(self.modules[0])
        with phase("workspace"):
            return unpacked(self.modules, self.columns, self._kernels)

    def product(self, x: Tensor) -> Tensor:
        """``(rows, out)`` of ``x (rows, in)``."""
        return nn.functional.linear(x, self.weight, self.bias)

    def back(self, dy: Tensor) -> Tensor:
        """The gradient of ``x``."""
        return dy @ self.weight

    def separate(self) -> None:
        """Give each module a weight of its own again."""
        if self._moved:
            for module in self.modules:
                module.weight.data = module.weight.data.clone()  # type: ignore[operator]
            self._moved = False
        self._merged = None


def _side_by_side(weights: Sequence[Tensor]) -> Tensor | None:
    """The matrix that ``weights (out, in)`` are where they lie: one after another in one storage."""
    first = weights[0]
    storage, end = first.untyped_storage()._cdata, first.storage_offset()
    for weight in weights:
        there = weight.untyped_storage()._cdata == storage and weight.storage_offset() == end
        if not there or not weight.is_contiguous() or (weight.dtype, weight.shape[1]) != (first.dtype, first.shape[1]):
            return None
        end += weight.numel()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), (first.shape[1], 1))
