"""The CPU kernels of the packed step: what lies between the matrix products, one pass over the rows each.

:func:`usable` says whether they serve a tensor; :func:`call` runs one. A tensor without data (the planner's) is served
too: its kernels do nothing, and their outputs, which the caller makes, are booked all the same.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lora_lab.packing.native.build import library

_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}


def usable(x: Tensor, kernels: str = "cpu") -> bool:
    """Whether the kernels serve ``x``: on a CPU, in bfloat16 or float32. ``kernels`` as in ``Layout``."""
    return kernels == "cpu" and x.device.type == "cpu" and x.dtype in _SUFFIX and library() is not None


def without_data(x: Tensor) -> bool:
    """Whether ``x`` only says what there would be (the planner's)."""
    return isinstance(x, FakeTensor)


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel: tensors, which are contiguous, by address, integers as 64 bit, floats as float32.

    The first tensor's dtype chooses between the bfloat16 and the float32 kernel.
    """
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    if without_data(first):
        return
    kernels = library()
    assert kernels is not None
    given: list[ctypes.c_void_p | ctypes.c_float | ctypes.c_int64] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            assert argument.is_contiguous(), f"{name}: a tensor is not contiguous"
            given.append(ctypes.c_void_p(argument.data_ptr()))
        elif argument is None:
            given.append(ctypes.c_void_p(None))
        elif isinstance(argument, float):
            given.append(ctypes.c_float(argument))
        else:
            given.append(ctypes.c_int64(argument))
    getattr(kernels, f"{name}_{_SUFFIX[first.dtype]}")(*given)
