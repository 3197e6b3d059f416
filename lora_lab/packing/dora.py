"""DoRA (arXiv:2402.09353): a low-rank update whose rows are given a trained length."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_lab.methods import LowRank
from lora_lab.packing.frozen import Frozen


def directed(y: Tensor, factor: LowRank, frozen: Frozen) -> Tensor:
    """``m / |V| (y - b) + b`` of ``y (rows, out)``, which holds the update already; ``|V|`` are the row norms of
    ``V = W + scaling B A``, held constant in the backward (section 4.3 of the paper).
    """
    assert factor.magnitude is not None
    A, B = factor.product()
    scale = factor.magnitude / _lengths(frozen.weight.to(A.dtype), A.detach(), factor.scaling * B.detach())
    if frozen.bias is None:
        return y * scale
    bias = frozen.bias.to(A.dtype)
    return (y - bias) * scale + bias


def _lengths(W: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """``|W + B A|`` row by row; 1 for a row of zeros, as a padding token has in the head."""
    lengths: Tensor = torch.linalg.vector_norm(torch.addmm(W, B, A), dim=1)
    return torch.where(lengths == 0, 1.0, lengths)
