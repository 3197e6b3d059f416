"""(IA)^3 (arXiv:2205.05638): learned scales of activations, all ones at first.

A module of attention (or the head) has its output scaled; of the feed-forward block, the last module has its input
scaled, which is the block's inner activation. The rest of role ``mlp`` is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lora_lab.methods.attachment import Attachment, RowPath
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import ADAPTER, any_conv1d, injected, kept, shortest, untouched
from lora_lab.methods.targets import down_modules, linear_shape, modules_of, roles_of, target_modules
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


class Scale(RowPath):
    """``scale`` is ``(1, in)`` before the module (feed-forward) or ``(out, 1)`` after it, as PEFT keeps it."""

    def __init__(self, scale: nn.Parameter, feedforward: bool) -> None:
        self.scale, self.feedforward = scale, feedforward

    def parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`RowPath`."""
        return {"ia3_l": self.scale}

    def before(self, x: Tensor) -> Tensor:
        """See :class:`RowPath`."""
        return (x.to(self.scale.dtype) * self.scale.view(-1)).to(x.dtype) if self.feedforward else x

    def after(self, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """See :class:`RowPath`."""
        return y if self.feedforward else (y.to(self.scale.dtype) * self.scale.view(-1)).to(y.dtype)


def attach_ia3(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    from peft import IA3Config
    from peft.tuners.ia3 import IA3Model

    modules = _targets(base, spec)
    if not modules:
        return Attachment(spec)
    down = [name for name in modules if name in down_modules(base.roles)]
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=sorted(modules) if down else shortest(list(modules), base.model),
        feedforward_modules=sorted(down),
        fan_in_fan_out=any_conv1d(modules),
    )
    with untouched(base.model, seed):
        layers = injected(base.model, IA3Model, config, list(modules))
        paths = _paths(layers, spec)
    return Attachment(spec, paths=paths, peft_config=config)


def count_ia3(base: BaseModel, spec: MethodSpec) -> int:
    """``out`` a module, or ``in`` where the input is scaled."""
    down = down_modules(base.roles)
    return sum(linear_shape(module)[0 if name in down else 1] for name, module in _targets(base, spec).items())


def loaded_ia3(base: BaseModel, wrapped: Any, dtype: str) -> Attachment:
    """The attachment of an adapter that PEFT has loaded around ``base.model``."""
    from peft.tuners.ia3 import IA3Layer

    layers = {name: layer for name, layer in base.model.named_modules() if isinstance(layer, IA3Layer)}
    spec = MethodSpec("ia3", roles=roles_of(base.roles, list(layers)), dtype=dtype)
    return Attachment(spec, paths=_paths(layers, spec), peft_config=wrapped.peft_config[ADAPTER])


def _targets(base: BaseModel, spec: MethodSpec) -> dict[str, nn.Module]:
    down, mlp = down_modules(base.roles), base.roles.get("mlp", ())
    names = target_modules(base.roles, spec, base.spec.name)
    return modules_of(base.model, [name for name in names if name in down or name not in mlp])


def _paths(layers: Mapping[str, Any], spec: MethodSpec) -> dict[str, RowPath]:
    return {name: Scale(kept(layer.ia3_l[ADAPTER], spec), layer.is_feedforward) for name, layer in layers.items()}
