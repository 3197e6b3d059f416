"""Bottleneck adapters, which PEFT lacks: ``h + scale * up(activation(down(h)))`` with ``r`` units between.

``method.placement`` says where: ``houlsby`` (arXiv:1902.00751) after the attention and the feed-forward block of every
layer, ``pfeiffer`` (arXiv:2005.00247) after the feed-forward block alone, ``parallel`` (arXiv:2110.04366) beside the
feed-forward block, from its input to its output, four times as strong unless ``method.adapter_scale`` says otherwise.
Blocks are taken before the residual is added. ``up`` starts at zero, so each starts as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.errors import MethodError
from lora_lab.methods.attachment import Attachment, RowPath, dropped
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import adapter_dtype
from lora_lab.methods.targets import down_modules, in_layers, linear_shape, modules_of
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
_SCALES = {"houlsby": 1.0, "pfeiffer": 1.0, "parallel": 4.0}


class Bottleneck(RowPath):
    """``down (r, d)``, ``up (d, r)`` and their biases; its input is the module's output, or in parallel its input."""

    def __init__(self, width: int, spec: MethodSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.scale = spec.adapter_scale or _SCALES[spec.placement]
        bound = 1 / math.sqrt(width)  # of nn.Linear, whose initialisation this is
        drawn = [torch.empty(shape).uniform_(-bound, bound) for shape in ((spec.r, width), (spec.r,))]
        zeros = [torch.zeros(width, spec.r), torch.zeros(width)]
        self.down, self.down_bias, self.up, self.up_bias = (
            nn.Parameter(value.to(device=device, dtype=dtype)) for value in (*drawn, *zeros)
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`RowPath`."""
        return {
            "adapter_down.weight": self.down,
            "adapter_down.bias": self.down_bias,
            "adapter_up.weight": self.up,
            "adapter_up.bias": self.up_bias,
        }

    def after(self, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """See :class:`RowPath`."""
        rows = dropped((x if self.spec.placement == "parallel" else y).to(self.down.dtype), self.spec.dropout, seed)
        inner = _ACTIVATIONS[self.spec.activation](F.linear(rows, self.down, self.down_bias))
        return (y + self.scale * F.linear(inner, self.up, self.up_bias)).to(y.dtype)

    def multiplied(self) -> int:
        """See :class:`RowPath`."""
        return self.down.numel() + self.up.numel()


def attach_bottleneck(
    base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None
) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    dtype = adapter_dtype(base.model.dtype, spec)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        paths: dict[str, RowPath] = {
            name: Bottleneck(width, spec, dtype, base.device) for name, width in _places(base, spec).items()
        }
    return Attachment(spec, paths=paths, dropout=spec.dropout)


def count_bottleneck(base: BaseModel, spec: MethodSpec) -> int:
    """``2 r d + r + d`` an adapter, where the residual stream is ``d`` wide."""
    return sum(2 * spec.r * width + spec.r + width for width in _places(base, spec).values())


def _places(base: BaseModel, spec: MethodSpec) -> dict[str, int]:
    """Modules whose output is a block's output, and its width."""
    for role in ("mlp", "projection")[: 2 if spec.placement == "houlsby" else 1]:
        if not base.roles.get(role):
            raise MethodError(
                f"method.placement={spec.placement} stands at the {role} modules, and {base.spec.name} has none that "
                f"are known. Name them with 'model.roles={{{role}: [MODULE]}}'."
            )
    ends = modules_of(base.model, in_layers(down_modules(base.roles), base.roles, spec, base.spec.name))
    widths = {name: linear_shape(module)[1] for name, module in ends.items()}
    if spec.placement == "parallel":
        return {name.rpartition(".")[0]: width for name, width in widths.items()}
    if spec.placement == "houlsby":
        attention = in_layers(base.roles["projection"], base.roles, spec, base.spec.name)
        widths |= {name: linear_shape(module)[1] for name, module in modules_of(base.model, attention).items()}
    return {name: widths[name] for name, _ in base.model.named_modules() if name in widths}
