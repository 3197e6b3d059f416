"""A model cut short: its decoder layers, after how many of them they repeat, and the first few of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lab.planner.timeline import Label


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The list of a model's decoder layers; ``None`` where there is no one such list."""
    count = getattr(model.config, "num_hidden_layers", 0)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return lists[0] if len(lists) == 1 else None


@dataclass(frozen=True)
class Depths:
    """Two depths that tell what happens at the whole one: ``long`` is ``short`` and one ``period`` of layers more,
    the whole model ``short`` and ``times`` of them."""

    short: int
    period: int
    times: int

    @property
    def long(self) -> int:
        """Layers of the longer one."""
        return self.short + self.period


def depths(model: PreTrainedModel) -> Depths | None:
    """``None`` where the layers do not repeat, or are too few for this to be less work than all of them."""
    layers = decoder_layers(model)
    if layers is None:
        return None
    kinds = getattr(model.config, "layer_types", None) or [""] * len(layers)
    alike = [f"{kind} {layer}" for kind, layer in zip(kinds, layers, strict=True)]
    for period in range(1, len(layers) // 2):
        if all(one == other for one, other in zip(alike, alike[period:], strict=False)):
            short = 2 * period + len(layers) % period
            times = (len(layers) - short) // period
            return Depths(short, period, times) if 2 * short + period < len(layers) else None
    return None


def cut(model: PreTrainedModel, layers: int) -> nn.ModuleList:
    """Keep the first so many decoder layers of ``model``, and return them."""
    found = decoder_layers(model)
    assert found is not None
    del found[layers:]
    return found


def mark_layers(layers: nn.ModuleList, mark: Callable[[Label], None]) -> None:
    """Have ``mark`` called when a layer begins its forward or its backward, and when the layers are left behind."""

    def backward_begins(hidden: Tensor, layer: int) -> None:
        label = ("backward", layer) if layer >= 0 else ("below", 0)

        def heard(_: Tensor) -> None:
            mark(label)

        if hidden.requires_grad:
            hidden.register_hook(heard)

    def enters(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mark(("forward", layer))
        backward_begins(args[0] if args else kwargs["hidden_states"], layer - 1)

    def leaves(output: Any) -> None:
        mark(("middle", 0))
        backward_begins(output if isinstance(output, Tensor) else output[0], len(layers) - 1)

    for i, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda _, args, kwargs, i=i: enters(i, args, kwargs), with_kwargs=True)
    layers[-1].register_forward_hook(lambda _, __, output: leaves(output))
