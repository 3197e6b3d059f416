"""AdaLoRA (arXiv:2303.10512): LoRA in the form of an SVD, whose least important ranks are taken away while it trains.

A module's update is ``B (E * A)``; every module begins with rank ``method.init_r``, and a budget that shrinks to
``method.r`` a module on average keeps the triplets ``(A_i, E_i, B_i)`` that matter most, whatever their module.
PEFT's own allocator decides; it is given this lane's parameters instead of a model, so lanes stay apart and the
forward is that of any low-rank path: it is packable.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.methods.attachment import PREFIX, Attachment, LowRank
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import ADAPTER, any_conv1d, injected, kept, shortest, untouched
from lora_lab.methods.targets import linear_shape, modules_of, roles_of, target_modules
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec

_TRIPLET = ("lora_A", "lora_B", "lora_E")


@dataclass(eq=False)
class AdaLora(Attachment):
    """An attachment that gives ranks away after each step."""

    keep: dict[str, Tensor] = field(default_factory=dict)
    allocator: Any = field(default=None, repr=False)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As PEFT's allocator wants to find them in a model."""
        for module, factor in self.factors.items():
            for local, parameter in factor.parameters().items():
                yield f"{module}.{local}.{ADAPTER}", parameter

    def penalty(self) -> Tensor:
        """How far the factors are from orthogonal (eq. 4), as PEFT's ``AdaLoraModel`` adds it to a loss."""
        parts = []
        for factor in self.factors.values():
            for gram in (factor.A @ factor.A.T, factor.B.T @ factor.B):
                parts.append(
                    torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
                )
        return self.spec.orthogonality * torch.stack(parts).mean()

    def after_step(self, step: int, total: int) -> None:
        """Measure what each triplet is worth, by values and gradients, and put out those beyond the budget."""
        from peft import AdaLoraModel

        config = self.allocator.peft_config
        config.total_step = total
        config.tinit, config.tfinal = int(self.spec.initial_share * total), int(self.spec.final_share * total)
        config.rank_pattern = {f"{module}.lora_E.{ADAPTER}": mask.tolist() for module, mask in self.keep.items()}
        allocation = SimpleNamespace(
            peft_config={ADAPTER: config}, trainable_adapter_name=ADAPTER, rankallocator=self.allocator, model=self
        )
        AdaLoraModel.update_and_allocate(allocation, step)
        for module, mask in self.keep.items():
            mask.copy_(torch.tensor(config.rank_pattern[f"{module}.lora_E.{ADAPTER}"]))
        if not self.allocator.ipt:
            self.forget()

    def forget(self) -> None:
        """Begin the running means of sensitivity and uncertainty at zero."""
        for means in (self.allocator.ipt, self.allocator.exp_avg_ipt, self.allocator.exp_avg_unc):
            means.update({name: torch.zeros_like(parameter) for name, parameter in self.named_parameters()})

    def buffers(self) -> dict[str, Tensor]:
        """Which ranks are kept, and what the allocator remembers."""
        named = {f"{PREFIX}{module}.keep": mask for module, mask in self.keep.items()}
        for kind in ("exp_avg_ipt", "exp_avg_unc"):
            named |= {f"{PREFIX}{name}.{kind}": value for name, value in getattr(self.allocator, kind).items()}
        return named

    def exported(self) -> dict[str, Tensor]:
        """Only the ranks that are kept, as PEFT saves them."""
        tensors = {}
        for module, factor in self.factors.items():
            mask, parts = self.keep[module], factor.parameters()
            for name in _TRIPLET:
                value = parts[name].detach()
                tensors[f"{PREFIX}{module}.{name}"] = value[:, mask] if name == "lora_B" else value[mask]
        self.peft_config = copy.copy(self.allocator.peft_config)
        self.peft_config.rank_pattern = {f"{module}.lora_E": mask.tolist() for module, mask in self.keep.items()}
        return tensors


def attach_adalora(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    from peft import AdaLoraConfig, AdaLoraModel

    modules = modules_of(base.model, target_modules(base.roles, spec, base.spec.name))
    if not modules:
        return Attachment(spec)
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_r=spec.r,
        init_r=spec.first_r,
        lora_alpha=spec.effective_alpha,
        lora_dropout=spec.dropout,
        deltaT=spec.allocate_every,
        orth_reg_weight=spec.orthogonality,
        total_step=1,
        target_modules=shortest(list(modules), base.model),
        fan_in_fan_out=any_conv1d(modules),
    )
    with untouched(base.model, seed):
        layers = injected(base.model, AdaLoraModel, config, list(modules))
        factors = {name: _factors(layer, spec) for name, layer in layers.items()}
    return _with_allocator(spec, factors, config)


def count_adalora(base: BaseModel, spec: MethodSpec) -> int:
    """``r (in + out + 1)`` a module, with the rank it begins with."""
    modules = modules_of(base.model, target_modules(base.roles, spec, base.spec.name))
    return sum(spec.first_r * (sum(linear_shape(module)) + 1) for module in modules.values())


def loaded_adalora(base: BaseModel, wrapped: Any, dtype: str) -> Attachment:
    """The attachment of an adapter that PEFT has loaded around ``base.model``: the ranks it kept."""
    from peft.tuners.adalora import AdaLoraLayer

    config = copy.copy(wrapped.peft_config[ADAPTER])
    layers = {name: layer for name, layer in base.model.named_modules() if isinstance(layer, AdaLoraLayer)}
    spec = MethodSpec(
        "adalora",
        r=config.target_r,
        init_r=max(config.init_r, config.target_r + 1),
        alpha=float(config.lora_alpha),
        roles=roles_of(base.roles, list(layers)),
        dropout=config.lora_dropout,
        dtype=dtype,
        allocate_every=config.deltaT,
        orthogonality=config.orth_reg_weight,
    )
    return _with_allocator(spec, {name: _factors(layer, spec) for name, layer in layers.items()}, config)


def _with_allocator(spec: MethodSpec, factors: dict[str, LowRank], config: Any) -> AdaLora:
    from peft.tuners.adalora.layer import RankAllocator

    keep = {name: torch.ones(len(factor.A), dtype=torch.bool) for name, factor in factors.items()}
    attachment = AdaLora(spec, factors=factors, dropout=spec.dropout, peft_config=config, keep=keep)
    attachment.allocator = RankAllocator(attachment, config, ADAPTER)
    attachment.forget()
    return attachment


def _factors(layer: Any, spec: MethodSpec) -> LowRank:
    A, B, E = (kept(getattr(layer, name)[ADAPTER], spec) for name in _TRIPLET)
    return LowRank(A, B, float(layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER].item() + 1e-5)), values=E)
