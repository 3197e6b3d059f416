"""Adapters without values: what :func:`lora_lab.methods.attach` gives, on tensors that need no memory.

Methods make their own parameters, under a ``FakeTensorMode`` as elsewhere. LoRA's and AdaLoRA's are made here, of the
same names, shapes and dtypes: most plans are of LoRA, PEFT takes seconds to be imported and to go through a 7B model,
and its AdaLoRA looks at values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lora_lab.methods import Attachment, LowRank, attach, module_ranks, target_modules
from lora_lab.methods.attachment import PREFIX, RowPath
from lora_lab.methods.dora import Magnitude
from lora_lab.methods.inits import MUTATING
from lora_lab.methods.injection import adapter_dtype
from lora_lab.methods.targets import linear_shape, modules_of
from lora_lab.models import BaseModel
from lora_lab.spec import ROLES, MethodSpec, mask_name

OTHER = "other"
"""What :func:`by_role` calls parameters of modules that play no role: embeddings, norms, prompts."""


def attachment(base: BaseModel, method: MethodSpec) -> Attachment:
    """A lane's parameters without values. Call it under a ``FakeTensorMode``: they can be large.

    Raises:
        MethodError, ModelError: as :func:`lora_lab.methods.attach`.
    """
    if method.name in ("lora", "adalora"):
        return _lora(base, method)
    with _converted_in_place():
        return attach(base, method, 0)


@contextlib.contextmanager
def _converted_in_place() -> Iterator[None]:
    """Within, ``module.to(...)`` works on parameters without data, which torch cannot swap for one another."""

    def apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for inner in module.modules() if recurse else [module]:
            for name, parameter in inner._parameters.items():
                if parameter is not None and (changed := change(parameter)) is not parameter:
                    inner._parameters[name] = nn.Parameter(changed.detach(), parameter.requires_grad)
            for name, buffer in inner._buffers.items():
                if buffer is not None:
                    inner._buffers[name] = change(buffer)
        return module

    own, nn.Module._apply = nn.Module._apply, apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = own  # type: ignore[method-assign]


def _lora(base: BaseModel, method: MethodSpec) -> Attachment:
    modules = modules_of(base.model, target_modules(base.roles, method, base.spec.name))
    if not modules:
        return Attachment(method)
    ranks = module_ranks(method, list(modules)) if method.name == "lora" else dict.fromkeys(modules, method.first_r)
    dtype = adapter_dtype(base.model.dtype, method)
    factors: dict[str, LowRank] = {}
    paths: dict[str, RowPath] = {}
    for name, module in modules.items():
        r, (inputs, outputs) = ranks[name], linear_shape(module)
        factor = LowRank(_empty(dtype, r, inputs), _empty(dtype, outputs, r), method.scaling_at(r))
        if method.name == "adalora":
            factor.values = _empty(dtype, r, 1)
        if method.name == "lora" and method.init.startswith(MUTATING):
            factor.initial = torch.empty_like(factor.A.detach()), torch.empty_like(factor.B.detach())
        factors[name] = factor
        if method.name == "lora" and method.dora:
            paths[name] = Magnitude(_empty(dtype, outputs), factor, module)
    return Attachment(method, factors=factors, paths=paths, dropout=method.dropout)


def remembered(found: Attachment) -> list[Tensor]:
    """What the method itself keeps from step to step: AdaLoRA each number's importance, sensitivity and uncertainty."""
    kinds = 3 if found.spec.name == "adalora" else 0
    return [torch.empty_like(parameter) for _ in range(kinds) for parameter in found.parameters().values()]


def _empty(dtype: torch.dtype, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype))


def by_role(found: Attachment, base: BaseModel) -> dict[str, int]:
    """Trainable parameters by role. A fused matrix counts once, under all it plays: ``query+key+value``."""
    played: dict[str, list[str]] = {}
    for role in ROLES:
        for name in base.roles.get(role, ()):
            played.setdefault(name, []).append(role)
    counts: dict[str, int] = {}
    for name, parameter in found.parameters().items():
        parts = name.removeprefix(PREFIX).split(".")
        ends = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        module: str | None = next((end for end in ends if end in played), None)
        role = OTHER if module is None else mask_name(tuple(played[module]))
        counts[role] = counts.get(role, 0) + parameter.numel()
    return counts
