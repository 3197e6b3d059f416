"""LoRA (arXiv:2106.09685), made by PEFT itself on the real model and then taken off it again.

PEFT decides what an adapter is: which modules match, how its factors are drawn, in which dtype they are kept.
So a lane starts from exactly the parameters that stock ``get_peft_model`` gives.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lora_lab.errors import MethodError
from lora_lab.methods.attachment import Attachment, LowRank
from lora_lab.methods.targets import target_modules
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec

_ADAPTER = "default"
_one_at_a_time = threading.Lock()


def attach_lora(base: BaseModel, spec: MethodSpec, seed: int) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    names = target_modules(base.roles, spec, base.spec.name)
    if not names:
        return Attachment(spec, packable=True, factors={}, dropout=spec.dropout)
    modules = _originals(base.model, names)
    config = _config(base.model, modules, spec)
    with _one_at_a_time, _restored(base.model, modules), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2 with a head: PEFT sets fan_in_fan_out module by module, and says so
        torch.default_generator.manual_seed(seed)
        made = _inject(base.model, copy.deepcopy(config))  # PEFT rewrites what it is given
        factors = {name: _factors(layer, spec.scaling) for name, layer in made.items()}
    if factors.keys() != modules.keys():
        differing = sorted(factors.keys() ^ modules.keys())
        raise MethodError(
            f"method.roles: PEFT adapted other modules than {base.spec.name}'s roles name: {', '.join(differing[:5])}. "
            "Name modules with model.roles that no other module's name ends with."
        )
    return Attachment(spec, True, factors, spec.dropout, peft_config=config)


def _config(model: nn.Module, modules: dict[str, nn.Module], spec: MethodSpec) -> Any:
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    alpha = spec.effective_alpha
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.r,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        init_lora_weights={"default": True, "gaussian": "gaussian"}[spec.init],
        target_modules=_shortest(list(modules), [name for name, _ in model.named_modules()]),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules.values()),
    )


def _shortest(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """The familiar ``[q_proj, v_proj]`` where those ends of names match exactly ``wanted``, else full names."""
    for parts in (1, 2):
        ends = sorted({".".join(name.split(".")[-parts:]) for name in wanted})
        matched = [name for name in names if any(name == end or name.endswith(f".{end}") for end in ends)]
        if sorted(matched) == sorted(wanted):
            return ends
    return sorted(wanted)


def _inject(model: Any, config: Any) -> dict[str, Any]:
    """Let PEFT wrap the modules; the wrapped ones by full name, in the order of the model."""
    from peft.tuners.lora import LoraLayer, LoraModel

    LoraModel(model, config, _ADAPTER)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _factors(layer: Any, scaling: float) -> LowRank:
    return LowRank(_owned(layer.lora_A[_ADAPTER].weight), _owned(layer.lora_B[_ADAPTER].weight), scaling)


def _owned(weight: nn.Parameter) -> nn.Parameter:
    """In float32 at least, as PEFT keeps the adapters of a 16-bit model (``autocast_adapter_dtype``)."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return nn.Parameter(weight.detach().to(wide))


def _originals(model: Any, names: Sequence[str]) -> dict[str, nn.Module]:
    present, wanted = dict(model.named_modules()), set(names)
    missing = sorted(wanted - present.keys())
    if missing:
        raise MethodError(f"method.roles: no module is named {', '.join(missing[:5])}. Load the model again.")
    return {name: module for name, module in present.items() if name in wanted}


@contextmanager
def _restored(model: Any, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Put the original modules back, in place and order, however the inside ends."""
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
        if hasattr(model, "peft_config"):
            del model.peft_config
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen[name])
