"""DoRA (arXiv:2402.09353): a low-rank update of a weight's direction, and its magnitude apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.methods.attachment import LowRank, RowPath
from lora_lab.models import frozen_weight


class Magnitude(RowPath):
    """``m / |V|`` times what the weight ``V = W + scaling B A`` gives, with ``m (out,)`` trained (eq. 5).

    ``|V|`` are the row norms of ``V``, held constant in the backward (section 4.3). They are had without making ``V``:
    ``|V|^2 = |W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>`` row by row. With dropout, stock PEFT leaves the base's own
    product as it is; here it is scaled as the equation has it.
    """

    def __init__(self, magnitude: nn.Parameter, factor: LowRank, module: Any) -> None:
        self.magnitude, self.factor, self.module = magnitude, factor, module
        self._squares: Tensor | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`RowPath`."""
        return {"lora_magnitude_vector": self.magnitude}

    def after(self, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """See :class:`RowPath`."""
        scale = self.magnitude / self._norms()
        bias = self.module.bias
        scaled: Tensor = y * scale if bias is None else (y - bias) * scale + bias
        return scaled.to(y.dtype)

    @torch.no_grad()
    def _norms(self) -> Tensor:
        A, B = (part.float() if part.dtype == torch.bfloat16 else part for part in self.factor.product())
        W, s = frozen_weight(self.module).to(A.dtype), self.factor.scaling
        if self._squares is None:
            self._squares = W.square().sum(1)
        squares = self._squares + 2 * s * ((W @ A.T) * B).sum(1) + s**2 * ((B @ (A @ A.T)) * B).sum(1)
        norms: Tensor = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        return norms
