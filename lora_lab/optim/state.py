"""An optimizer's state as tensors and JSON scalars by name, and back, bit for bit.

Not ``load_state_dict``: torch's casts what it reads to the parameters' dtype, bitsandbytes' nests its tensors, and both
want hyperparameters beside the state, which here come from the spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Scalar = bool | int | float


def export_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
    """Tensors (sharing storage) and numbers: ``<parameter>.<field>`` and ``group<number>.<field>``.

    Parameters are numbered in the order of the groups.
    """
    entries = dict(_entries(optimizer))
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in entries.items() if isinstance(value, Scalar)}


def import_state(optimizer: torch.optim.Optimizer, entries: Mapping[str, Any]) -> None:
    """Put what :func:`export_state` gave into an optimizer built from the same spec over the same parameters."""
    owners = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in entries.items():
        where, field = name.split(".", 1)
        if where.startswith("group"):
            optimizer.param_groups[int(where.removeprefix("group"))][field] = _own(value)
            continue
        parameter, group = owners[int(where)]
        on_host = field == "step" and not group.get("fused")  # torch counts the steps of other kernels on the CPU
        optimizer.state[parameter][field] = _own(value, None if on_host else parameter.device)


def _entries(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    number = 0
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            yield from ((f"{number}.{field}", value) for field, value in optimizer.state.get(parameter, {}).items())
            number += 1
        yield from ((f"group{index}.{field}", value) for field, value in group.items())


def _own(value: Any, device: torch.device | None = None) -> Any:
    return value.clone().to(device) if isinstance(value, Tensor) else value
