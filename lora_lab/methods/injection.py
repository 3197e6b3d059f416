"""PEFT's tuners let loose on the real model, and the model put back as it was.

PEFT decides what an adapter is: which modules match, how its parameters are drawn, in which dtype they are kept.
So a lane starts from exactly the parameters that stock ``get_peft_model`` gives.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.errors import MethodError
from lora_lab.models.quantised import constants
from lora_lab.spec import MethodSpec

ADAPTER = "default"
_one_at_a_time = threading.Lock()


@contextmanager
def untouched(model: Any, seed: int | None = None) -> Iterator[None]:
    """Within, ``model`` may be rebuilt at will; its modules, hooks, attributes, flags and the RNG's state come back.

    Its modules have no mounted forwards meanwhile (PEFT may copy a module with all that it holds).

    Weights must not be written to. ``seed`` is what the RNG starts from. One thread at a time; PEFT's warnings are
    about choices that are made here on purpose (``fan_in_fan_out`` set module by module), and not shown.
    """
    with _one_at_a_time, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        modules = list(model.modules())
        insides = [[dict(inside) for inside in _insides(module)] for module in modules]
        modes = [module.training for module in modules]
        forwards = {module: vars(module).pop("forward") for module in modules if "forward" in vars(module)}
        frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
        attributes, config = dict(vars(model)), dict(vars(model.config))
        try:
            yield
        finally:
            for module, before, mode in zip(modules, insides, modes, strict=True):
                for now, then in zip(_insides(module), before, strict=True):
                    _put_back(now, then)
                module.training = mode
            _put_back(vars(model), attributes)
            _put_back(vars(model.config), config)
            for parameter, trains in frozen.items():
                parameter.requires_grad_(trains)
            for module, forward in forwards.items():
                module.forward = forward


def _insides(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return (module._modules, module._parameters, module._forward_hooks, module._forward_pre_hooks)  # type: ignore[return-value]


def _put_back(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    for key in now.keys() - before.keys():
        del now[key]
    for key, value in before.items():
        if now.get(key) is not value:
            now[key] = value


def injected(model: Any, tuner: type, config: Any, names: Sequence[str]) -> dict[str, Any]:
    """Let PEFT's ``tuner`` wrap the modules of ``config``: the wrapped ones by full name, in the order of the model.

    Call it within :func:`untouched`.

    Raises:
        MethodError: PEFT adapted other modules than ``names``.
    """
    tuned: Any = tuner(model, copy.deepcopy(config), ADAPTER)  # PEFT rewrites the config it is given
    kind = tuned.tuner_layer_cls
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}
    if layers.keys() != set(names):
        differing = sorted(layers.keys() ^ set(names))
        raise MethodError(
            f"method.roles: PEFT adapted other modules than the model's roles name: {', '.join(differing[:5])}. "
            "Name modules with model.roles that no other module's name ends with."
        )
    return layers


def shortest(wanted: Sequence[str], model: nn.Module) -> list[str]:
    """The familiar ``[q_proj, v_proj]`` where those ends of names match exactly ``wanted``, else full names."""
    names = [name for name, _ in model.named_modules()]
    for parts in (1, 2):
        ends = sorted({".".join(name.split(".")[-parts:]) for name in wanted})
        matched = [name for name in names if any(name == end or name.endswith(f".{end}") for end in ends)]
        if sorted(matched) == sorted(wanted):
            return ends
    return sorted(wanted)


def any_conv1d(modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module stores its weight as ``(in, out)``, as GPT-2's do; PEFT wants to be told."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in modules.values())


def kept(tensor: Tensor, spec: MethodSpec) -> nn.Parameter:
    """A trainable copy of ``tensor``, as an adapter is kept: ``method.dtype``.

    ``auto`` is float32, or float64 on a float64 base: what PEFT keeps, also of a 16-bit model
    (``autocast_adapter_dtype``).
    """
    return nn.Parameter(tensor.detach().to(adapter_dtype(tensor.dtype, spec), copy=True))


def adapter_dtype(dtype: torch.dtype, spec: MethodSpec) -> torch.dtype:
    """In which dtype an adapter of something in ``dtype`` is kept."""
    if spec.dtype != "auto":
        chosen: torch.dtype = getattr(torch, spec.dtype)
        return chosen
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_quantised(module: Any) -> bool:
    """Whether a linear module keeps its weight as bitsandbytes' 4- or 8-bit numbers, perhaps without data."""
    return type(module.weight).__name__ in ("Params4bit", "Int8Params") or bool(constants(module))
