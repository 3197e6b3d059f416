"""Dropout whose noise is a function of numbers, not of what was drawn before.

Whether an element is kept is a hash of a seed and of the element's place among its lane's own rows. So a lane's noise
depends neither on its company nor on the order of computation, and a resumed run goes on with the same noise. The
backward draws it again, or reads it from one bit an element.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from lora_lab.packing import native


def seed_of(noise: int, module: str) -> int:
    """The 32-bit seed of one module's noise in the forward whose noise is ``noise``."""
    return zlib.crc32(f"{noise}:{module}".encode())


def limit_of(p: float) -> int:
    """Elements whose 32 bits of noise are below it are kept."""
    return min(round((1.0 - p) * 2**32), 2**32 - 1)


def dropout(x: Tensor, p: float, seed: int, kernels: str, out: Tensor | None = None) -> Tensor:
    """``x`` with each element zero with probability ``p``, and divided by ``1 - p`` otherwise.

    ``out`` may be ``x`` itself. The same call on a gradient is its backward.
    """
    out = torch.empty_like(x) if out is None else out
    limit = limit_of(p)
    if native.usable(x, kernels):
        native.call("dropout", x, out, x.numel(), seed, limit, 1.0 / (1.0 - p))
        return out
    kept = _noise(x.numel(), seed, x.device).view(x.shape) < limit
    return out.copy_(torch.where(kept, x * (1.0 / (1.0 - p)), 0.0))


def _noise(elements: int, seed: int, device: torch.device) -> Tensor:
    """``mixed`` of native/kernels.cpp, in 64-bit integers that hold 32 bits."""
    i = torch.arange(elements, device=device)
    return _mixed(_mixed(i) ^ seed)


def _mixed(h: Tensor) -> Tensor:
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & 0xFFFFFFFF
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & 0xFFFFFFFF
    return h ^ (h >> 16)
