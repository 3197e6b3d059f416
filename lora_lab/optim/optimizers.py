"""Optimizers by name: one line a name in :data:`BUILDERS`.

They are torch's, bitsandbytes' and pytorch_optimizer's own in their multi-tensor forms, so that a lane alone is the
stock optimizer; :mod:`~lora_lab.optim.sophia` and :mod:`~lora_lab.optim.prodigy` say why they are written here.
An optimizer sees the parameters of one lane and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from lora_lab.optim.devices import check_device
from lora_lab.optim.flat import flattened, follow
from lora_lab.optim.groups import groups
from lora_lab.optim.prodigy import Prodigy
from lora_lab.optim.sophia import Sophia
from lora_lab.spec import OptimizerSpec
from lora_lab.spec.optimizer import ELEMENTWISE

Groups = list[dict[str, Any]]


def _adamw(spec: OptimizerSpec, groups: Groups) -> torch.optim.Optimizer:
    own = spec.own
    return torch.optim.AdamW(
        groups,
        lr=spec.lr,
        betas=(own["beta1"], own["beta2"]),
        eps=own["eps"],
        weight_decay=spec.weight_decay,
        fused=True,
    )


def _adamw8bit(spec: OptimizerSpec, groups: Groups, paged: bool = False) -> torch.optim.Optimizer:
    """arXiv:2110.02861; parameters of fewer than 4,096 entries keep 32-bit averages."""
    import bitsandbytes

    own = spec.own
    made = bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit
    with _disable_current_modes():  # it reads its table of codes as numbers, also where parameters have no data
        optimizer: torch.optim.Optimizer = made(
            groups, lr=spec.lr, betas=(own["beta1"], own["beta2"]), eps=own["eps"], weight_decay=spec.weight_decay
        )
    return optimizer


def _sgd(spec: OptimizerSpec, groups: Groups) -> torch.optim.Optimizer:
    momentum = spec.own["momentum"]
    nesterov = spec.own["nesterov"] and momentum > 0
    return torch.optim.SGD(
        groups, lr=spec.lr, momentum=momentum, nesterov=nesterov, weight_decay=spec.weight_decay, fused=True
    )


def _adafactor(spec: OptimizerSpec, groups: Groups) -> torch.optim.Optimizer:
    """arXiv:1804.04235 with the rate given from outside and no first moment, as transformers' Trainer uses it."""
    from pytorch_optimizer import AdaFactor

    own = spec.own
    return AdaFactor(
        groups,
        lr=spec.lr,
        betas=(None, 1.0 - 1e-12),  # the second is a cap of the decay, which the paper has not
        decay_rate=own["decay_rate"],
        clip_threshold=own["clip_threshold"],
        scale_parameter=own["scale_parameter"],
        relative_step=False,
        weight_decay=spec.weight_decay,
    )


def _lion(spec: OptimizerSpec, groups: Groups) -> torch.optim.Optimizer:
    """arXiv:2302.06675."""
    from pytorch_optimizer import Lion

    betas = (spec.own["beta1"], spec.own["beta2"])
    return Lion(groups, lr=spec.lr, betas=betas, weight_decay=spec.weight_decay)


def _sophia(spec: OptimizerSpec, groups: Groups, gauss_newton: bool) -> torch.optim.Optimizer:
    own = spec.own
    return Sophia(
        groups,
        lr=spec.lr,
        betas=(own["beta1"], own["beta2"]),
        rho=own["rho"],
        weight_decay=spec.weight_decay,
        every=own["hessian_every"],
        gauss_newton=gauss_newton,
    )


def _prodigy(spec: OptimizerSpec, groups: Groups) -> torch.optim.Optimizer:
    own = spec.own
    return Prodigy(
        groups,
        lr=spec.lr,
        betas=(own["beta1"], own["beta2"]),
        eps=own["eps"],
        weight_decay=spec.weight_decay,
        d0=own["d0"],
        d_coef=own["d_coef"],
        bias_correction=own["bias_correction"],
        safeguard_warmup=own["safeguard_warmup"],
    )


def _muon(spec: OptimizerSpec, groups: Groups) -> torch.optim.Optimizer:
    """Keller Jordan's Muon (arXiv:2502.16982 for its rate), equal shapes orthogonalised together."""
    from pytorch_optimizer import Muon

    own = spec.own
    for group in groups:
        group["weight_decay"] = spec.weight_decay
        if not group["use_muon"]:
            group["betas"], group["eps"] = (own["beta1"], own["beta2"]), own["eps"]
    return Muon(
        groups,
        momentum=own["momentum"],
        nesterov=own["nesterov"],
        ns_steps=own["ns_steps"],
        use_adjusted_lr=own["adjust_lr"] == "match_rms_adamw",
    )


def _schedulefree_adamw(spec: OptimizerSpec, groups: Groups) -> torch.optim.Optimizer:
    """arXiv:2405.15682. See :func:`evaluating`."""
    from pytorch_optimizer import ScheduleFreeAdamW

    own = spec.own
    return ScheduleFreeAdamW(
        groups,
        lr=spec.lr,
        betas=(own["beta1"], own["beta2"]),
        eps=own["eps"],
        weight_decay=spec.weight_decay,
    )


BUILDERS: dict[str, Callable[[OptimizerSpec, Groups], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "paged_adamw8bit": lambda spec, groups: _adamw8bit(spec, groups, paged=True),
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
    "sophiag": lambda spec, groups: _sophia(spec, groups, gauss_newton=True),
    "sophiah": lambda spec, groups: _sophia(spec, groups, gauss_newton=False),
    "prodigy": _prodigy,
    "muon": _muon,
    "schedulefree_adamw": _schedulefree_adamw,
}


def build(
    spec: OptimizerSpec, parameters: Mapping[str, nn.Parameter], *, movable: bool = True
) -> torch.optim.Optimizer:
    """The optimizer of ``spec`` over named parameters (at least one), at its full rate.

    ``movable``: they may be given another storage.

    Raises:
        SpecError: LoRA+ for a method without a B, or an optimizer that the parameters' device cannot run.
    """
    check_device(spec, next(iter(parameters.values())).device.type)
    if spec.name == "muon":
        return _muon(spec, groups(spec, parameters, lambda name, parameter: {"use_muon": parameter.ndim == 2}))
    made = groups(spec, parameters)
    if not movable or spec.name not in ELEMENTWISE or len({parameter.dtype for parameter in parameters.values()}) > 1:
        return BUILDERS[spec.name](spec, made)
    optimizer = BUILDERS[spec.name](spec, flattened(made))
    follow(optimizer, made)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Make ``lr`` the run's rate: each group's is ``lr`` times its ``peak``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["peak"]


@contextlib.contextmanager
def evaluating(optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Within, the parameters are those to evaluate and save; after, bit for bit those that train.

    They differ for schedule-free optimizers, which train on one side of the average that is their result.
    """
    averaging = _averaging(optimizer)
    if averaging is None:
        yield
        return
    parameters = [p for group in averaging.param_groups for p in group["params"]]
    training = [p.detach().clone() for p in parameters]
    averaging.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, training)
        for group in averaging.param_groups:
            group["train_mode"] = True


def finish(optimizer: torch.optim.Optimizer | None) -> None:
    """Leave in the parameters what is evaluated and saved; the optimizer takes no more steps."""
    averaging = _averaging(optimizer)
    if averaging is not None:
        averaging.eval()


def _averaging(optimizer: torch.optim.Optimizer | None) -> Any:
    """``optimizer`` if it keeps its result beside what trains, and does not show it now; else ``None``."""
    return optimizer if optimizer is not None and optimizer.param_groups[0].get("train_mode") else None
