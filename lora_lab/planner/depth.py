"""A model cut short: its decoder layers, after how many of them they repeat, and the first few of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lab.planner.timeline import Label


def decoder_layers(model: PreTrainedModel, count: int) -> nn.ModuleList | None:
    """The list of a model's ``count`` decoder layers; ``None`` where there is no one such list."""
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
    layers = decoder_layers(model, _count(model))
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


def _count(model: PreTrainedModel) -> int:
    return getattr(model.config, "num_hidden_layers", 0)


def cut(model: PreTrainedModel, layers: int) -> None:
    """Keep the first so many decoder layers of ``model``."""
    found = decoder_layers(model, _count(model))
    assert found is not None
    del found[layers:]


class Layers:
    """Marks in a ledger where a layer begins its forward or its backward, and where the layers are left behind.

    Layers that are called are heard by hooks; :meth:`begins` is for those that the packed step walks through itself.
    """

    def __init__(self, layers: nn.ModuleList | None, mark: Callable[[Label], None]) -> None:
        assert layers is not None
        self._mark, self._count, self._reached = mark, len(layers), -1
        for i, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._enters, i), with_kwargs=True)
        layers[-1].register_forward_hook(self._leaves)

    def begins(self, layer: int, hidden: Tensor) -> None:
        """Layer ``layer`` (or the first thing after all of them) is about to read ``hidden``."""
        if layer <= self._reached:
            return  # again, for the backward: what is not kept is computed a second time
        self._reached = layer
        self._mark(("forward", layer) if layer < self._count else ("middle", 0))
        below: Label = ("backward", layer - 1) if layer else ("below", 0)
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self._mark(below))

    def _enters(self, layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.begins(layer, args[0] if args else kwargs["hidden_states"])

    def _leaves(self, _: nn.Module, __: Any, output: Any) -> None:
        self.begins(self._count, output if isinstance(output, Tensor) else output[0])
