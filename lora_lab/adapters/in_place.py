"""A resident base model whose weights are, for a while, those that an adapter makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.adapters.changes import changes
from lora_lab.errors import MethodError
from lora_lab.methods import Attachment
from lora_lab.models import BaseModel, frozen_weight

Weights = dict[str, tuple[Tensor, Tensor | None]]
"""Weight, as it is stored, and bias by module."""


def merged_weights(base: BaseModel, attachment: Attachment, name: str) -> Weights:
    """The weights and biases of the modules that ``attachment`` (``name`` in messages) changes, merged.

    Raises:
        MethodError: a method that is no change of weights, a module that is quantised, a bias where there is none.
    """
    found: Weights = {}
    modules: dict[str, Any] = dict(base.model.named_modules())
    for path, change in changes(attachment, name).items():
        module = modules[path]
        if type(module.weight).__name__ in ("Params4bit", "Int8Params"):
            raise MethodError(f"{name}: {path} is quantised, and a merged weight is not. Use `lora-lab merge`.")
        bias = module.bias if isinstance(getattr(module, "bias", None), Tensor) else None
        if bias is None and change.alters_bias(False):
            raise MethodError(f"{name}: {path} has no bias to change. Serve the adapter beside the base.")
        linear = module.weight.dim() == 2
        wide = torch.float64 if module.weight.dtype in (torch.float32, torch.float64) else torch.float32
        weight = frozen_weight(module) if linear else module.weight.detach()
        weight = change.weight(weight.to(wide), 0).to(module.weight.dtype)
        if linear and type(module).__name__ == "Conv1D":
            weight = weight.t().contiguous()
        found[path] = (weight, None if bias is None else change.bias(bias.detach().to(wide)).to(bias.dtype))
    return found


@contextmanager
def in_place(base: BaseModel, weights: Weights) -> Iterator[None]:
    """Within, the base has ``weights``; afterwards its own tensors again, the very same."""
    modules: dict[str, Any] = dict(base.model.named_modules())
    before = {path: (modules[path].weight, getattr(modules[path], "bias", None)) for path in weights}
    try:
        for path, (weight, bias) in weights.items():
            modules[path].weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                modules[path].bias = nn.Parameter(bias, requires_grad=False)
        yield
    finally:
        for path, (weight, bias) in before.items():
            modules[path].weight = weight
            if bias is not None:
                modules[path].bias = bias
