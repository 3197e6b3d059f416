"""Quantised frozen weights de-quantised side by side, in one pass where a kernel of this project serves them.

bitsandbytes' own takes a module at a time, block scales first and weights then, each into a new tensor, and a step
needs every weight twice: without the kernel that is a third of what a step of one lane takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.models import constants, frozen_dtype, frozen_weight
from lora_lab.packing import native


def unpacked(modules: Sequence[nn.Module], columns: Sequence[tuple[int, int]], kernels: str) -> Tensor:
    """``(out, in)`` of all ``modules``, whose outputs are ``columns`` of it, as ``frozen_weight`` gives each.

    ``kernels`` as in :class:`~lora_lab.packing.layout.Layout`.
    """
    first: Any = modules[0]
    none = torch.empty((0, first.in_features), dtype=frozen_dtype(first), device=first.weight.device)
    if not native.usable(none, kernels) or any(module.weight.is_floating_point() for module in modules):  # type: ignore[operator]
        weights = [frozen_weight(module) for module in modules]
        return weights[0] if len(weights) == 1 else torch.cat(weights)
    out = none.new_empty((columns[-1][1], first.in_features))
    for module, (a, b) in zip(modules, columns, strict=True):
        _unpack(module, out[a:b])
    return out


def _unpack(module: Any, out: Tensor) -> None:
    scales, *others = constants(module)
    state = getattr(module.weight, "quant_state", None)
    if state is None:
        native.call("unpack8", out, module.weight.data, scales, *out.shape)
    elif state.nested:
        code, offset, wide, table = others
        nested = [None, scales, table, wide, state.state2.blocksize, offset]
        native.call("unpack4", out, module.weight.data, code, out.numel(), state.blocksize, *nested)
    else:
        plain = [scales, None, None, None, 1, None]
        native.call("unpack4", out, module.weight.data, *others, out.numel(), state.blocksize, *plain)
