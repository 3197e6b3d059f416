"""Optimizers by name: one line a name in :data:`BUILDERS`.

They are torch's own, in their multi-tensor forms, so that a lane alone is stock torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from lora_lab.spec import OptimizerSpec


def _adamw(spec: OptimizerSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=spec.lr,
        betas=(spec.beta1, spec.beta2),
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def _sgd(spec: OptimizerSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True)


BUILDERS: dict[str, Callable[[OptimizerSpec, list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}


def build(spec: OptimizerSpec, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of ``spec`` over ``parameters`` (at least one)."""
    return BUILDERS[spec.name](spec, list(parameters))
