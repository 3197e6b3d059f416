"""BitFit (arXiv:2106.10199): only biases train.

Those of the linear modules of ``method.roles`` and, with ``method.norms``, of all norms in ``method.layers``. What
trains is the difference to the base's bias, so that weight decay pulls towards the base. Models without any bias
(most Llama-like ones) get new ones, zero at first, with ``method.add_biases``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_lab.errors import MethodError
from lora_lab.methods.attachment import Attachment, RowPath
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import adapter_dtype
from lora_lab.methods.targets import in_layers, layer_of, linear_shape, modules_of, target_modules
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


class Bias(RowPath):
    """A difference ``(out,)`` that is added to a module's output."""

    def __init__(self, delta: nn.Parameter) -> None:
        self.delta = delta

    def parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`RowPath`."""
        return {"bias_delta": self.delta}

    def after(self, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """See :class:`RowPath`."""
        return (y + self.delta).to(y.dtype)


def attach_bitfit(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    dtype = adapter_dtype(base.model.dtype, spec)
    paths: dict[str, RowPath] = {
        name: Bias(nn.Parameter(torch.zeros(width, dtype=dtype, device=base.device)))
        for name, width in _biases(base, spec).items()
    }
    return Attachment(spec, paths=paths)


def count_bitfit(base: BaseModel, spec: MethodSpec) -> int:
    """``out`` a module with a bias."""
    return sum(_biases(base, spec).values())


def _biases(base: BaseModel, spec: MethodSpec) -> dict[str, int]:
    linear = modules_of(base.model, target_modules(base.roles, spec, base.spec.name))
    if not linear:
        return {}
    found = {
        name: linear_shape(module)[1]
        for name, module in linear.items()
        if spec.add_biases or isinstance(module.bias, Tensor)
    }
    if spec.norms:
        norms = [
            name
            for name, module in base.model.named_modules()
            if isinstance(module, nn.LayerNorm) and module.bias is not None
        ]
        inside = [name for name in norms if layer_of(name) is not None or not spec.layers]
        for name in in_layers(inside, base.roles, spec, base.spec.name):
            found[name] = int(base.model.get_submodule(name).bias.numel())
    if not found:
        raise MethodError(
            f"method.name=bitfit trains biases, and {base.spec.name} has none in {'+'.join(spec.roles)}. "
            "Give it new ones with method.add_biases=true, or choose another method."
        )
    return {name: found[name] for name, _ in base.model.named_modules() if name in found}
