"""Many small parameters as one long one, for optimizers that treat every number alike.

A LoRA run trains hundreds of small matrices. An element-wise optimizer gives each number the same update wherever it
stands, so a group's parameters can share one storage and be updated in one go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Groups = list[dict[str, Any]]


def flattened(groups: Groups) -> Groups:
    """The groups with one parameter each, whose storage those of ``groups`` become views of."""
    out = []
    for group in groups:
        flat = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in group["params"]]))
        start = 0
        for parameter in group["params"]:
            parameter.data = flat.data[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        out.append({**group, "params": [flat]})
    return out


def follow(optimizer: torch.optim.Optimizer, groups: Groups) -> None:
    """Let every step of ``optimizer``, made of ``flattened(groups)``, begin with the gradients of ``groups``."""
    members: list[list[nn.Parameter]] = [group["params"] for group in groups]

    def gather(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, parameters in zip(optimizer.param_groups, members, strict=True):
            group["params"][0].grad = torch.cat([_gradient(parameter) for parameter in parameters])

    def forget(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["params"][0].grad = None

    optimizer.register_step_pre_hook(gather)
    optimizer.register_step_post_hook(forget)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    return parameter.grad.reshape(-1)
