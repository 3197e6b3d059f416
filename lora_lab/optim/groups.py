"""Parameter groups: how the rate of each parameter differs from the run's.

A group's ``peak`` is its rate as a multiple of the run's; ``peak`` is 1 for all without LoRA+ and layer-wise rates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lora_lab.errors import SpecError
from lora_lab.spec import OptimizerSpec

_LAYER = re.compile(r"\.(\d+)\.")
_BELOW = re.compile(r"embed|\bwte\b|\bwpe\b|prompt")
"""In the names of parameters below the first decoder layer; others that lie in no layer are above the last."""

CHUNK = 32
"""Parameters that a multi-tensor operation takes at once."""

Kind = Callable[[str, nn.Parameter], Mapping[str, Any]]
"""What else tells a parameter's group: fields of the group, by the parameter's name and shape."""


def groups(
    spec: OptimizerSpec, parameters: Mapping[str, nn.Parameter], kind: Kind = lambda name, parameter: {}
) -> list[dict[str, Any]]:
    """Groups of named parameters with equal rates, in the order of the parameters; each with ``lr`` and ``peak``.

    LoRA+ (arXiv:2402.12354) gives B, and like its authors' code LoRA's vectors (DoRA's magnitudes), ``lora_plus_ratio``
    times the rate of A. ``layer_decay`` gives each decoder layer that much of the rate of the layer above it: the
    topmost one that trains has the full rate, and so has what lies above it (a head); input embeddings and prompts lie
    below layer 0.

    Raises:
        SpecError: LoRA+ for parameters among which there is no B.
    """
    ratio = spec.lora_plus_ratio or 1.0
    layers = [int(found[1]) for name in parameters if (found := _LAYER.search(name))]
    top = max(layers, default=0)
    if ratio != 1.0 and not any("lora_B" in name for name in parameters):
        raise SpecError(
            f"optimizer.lora_plus_ratio={ratio:g}: this method trains no lora_B whose rate it sets. "
            "Set it to null, or use method.name=lora."
        )
    made: dict[Any, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        peak = 1.0
        if "lora_B" in name or ("lora_" in name and parameter.ndim == 1):
            peak *= ratio
        if spec.layer_decay is not None:
            peak *= spec.layer_decay ** (top - _layer(name, top))
        fields = {"peak": peak, **kind(name, parameter)}
        group = made.setdefault(tuple(fields.items()), {"params": [], "lr": spec.lr * peak, **fields})
        group["params"].append(parameter)
    return list(made.values())


def chunks(group: Mapping[str, Any]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The parameters of a group that have a gradient, and their gradients, some at a time.

    A multi-tensor operation goes over all its tensors before the next one does; a chunk's stay in a CPU's cache
    meanwhile, which halves the time of the optimizers that are written here.
    """
    pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        yield [p for p, _ in chunk], [grad for _, grad in chunk]


def _layer(name: str, top: int) -> int:
    found = _LAYER.search(name)
    if found:
        return int(found[1])
    return -1 if _BELOW.search(name) else top
