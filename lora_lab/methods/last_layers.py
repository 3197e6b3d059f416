"""Training the last decoder layers alone (arXiv:1911.03090): their linear modules, whole.

What trains is the difference to the frozen weight and bias, zero at first; so it stands beside other lanes on one base,
also a quantised one, and weight decay pulls towards the base. Norms stay frozen.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lora_lab.errors import MethodError
from lora_lab.methods.attachment import Attachment, RowPath
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import adapter_dtype
from lora_lab.methods.targets import layers_of, linear_shape, modules_of, target_modules
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


class Delta(RowPath):
    """Differences of a weight ``(out, in)`` and, where the module has one, of its bias ``(out,)``."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        self.weight, self.bias = weight, bias

    def parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`RowPath`."""
        named = {"weight_delta": self.weight}
        return named if self.bias is None else named | {"bias_delta": self.bias}

    def after(self, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """See :class:`RowPath`."""
        return (y + linear(x.to(self.weight.dtype), self.weight, self.bias)).to(y.dtype)

    def multiplied(self) -> int:
        """See :class:`RowPath`."""
        return self.weight.numel()


def attach_last_layers(
    base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None
) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    dtype = adapter_dtype(base.model.dtype, spec)

    def zeros(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(shape, dtype=dtype, device=base.device))

    paths: dict[str, RowPath] = {}
    for name, module in _targets(base, spec).items():
        inputs, outputs = linear_shape(module)
        paths[name] = Delta(zeros(outputs, inputs), zeros(outputs) if isinstance(module.bias, Tensor) else None)
    return Attachment(spec, paths=paths)


def count_last_layers(base: BaseModel, spec: MethodSpec) -> int:
    """``in out`` a module, and ``out`` more with a bias."""
    total = 0
    for module in _targets(base, spec).values():
        inputs, outputs = linear_shape(module)
        total += inputs * outputs + (outputs if isinstance(module.bias, Tensor) else 0)
    return total


def _targets(base: BaseModel, spec: MethodSpec) -> dict[str, nn.Module]:
    layers, wanted = layers_of(base.roles), spec.top_layers or 1
    if wanted > len(layers):
        raise MethodError(
            f"method.top_layers={wanted}: {base.spec.name} has {len(layers)} layers. Choose as many at most."
        )
    chosen = replace(spec, layers=tuple(layers[-wanted:]))
    return modules_of(base.model, target_modules(base.roles, chosen, base.spec.name))
