"""Prodigy (arXiv:2306.06101): AdamW whose rate is its own estimate ``d`` of the distance to the solution.

Written here because both its authors' code and pytorch_optimizer's take the rate of the first parameter group for all
of them, so that LoRA+ and layer-wise rates would do nothing, and because they read ``d`` back as a number at each
step, which waits for a GPU and cannot be traced without data. With one group the steps are theirs (tests/optim).

A group whose rate is ``peak`` times the run's trains ``x = peak * z`` by training ``z`` with everybody's rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lora_lab.optim.groups import chunks


class Prodigy(torch.optim.Optimizer):
    """Algorithm 4 of the paper with decoupled weight decay.

    Args:
        params: parameter groups, each with ``peak``.
        lr: a factor of the estimated rate; 1 unless a schedule lowers it.
        betas, eps, weight_decay: as Adam's. The estimate's own average decays with the root of ``betas[1]``.
        d0: the first estimate.
        d_coef: a factor of every estimate after it.
        bias_correction: Adam's correction of young averages.
        safeguard_warmup: keep a warm-up's low rates out of the estimate's denominator.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        d0: float,
        d_coef: float,
        bias_correction: bool,
        safeguard_warmup: bool,
    ) -> None:
        super().__init__(params, {"lr": lr, "peak": 1.0, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.d0, self.d_coef = d0, d_coef
        self.bias_correction, self.safeguard_warmup = bias_correction, safeguard_warmup
        shared = self.param_groups[0]
        shared["step"] = 0
        shared["d"], shared["numerator"] = (torch.tensor(value, dtype=torch.float64) for value in (d0, 0.0))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        shared = self.param_groups[0]
        device = shared["params"][0].device
        d, numerator = shared["d"].to(device), shared["numerator"].to(device)
        beta1, beta2 = shared["betas"]
        shared["step"] += 1
        correction = 1.0
        if self.bias_correction:
            correction = math.sqrt(1.0 - beta2 ** shared["step"]) / (1.0 - beta1 ** shared["step"])
        rate = d * (correction * shared["lr"] / shared["peak"])
        numerator = numerator * math.sqrt(beta2)
        denominator = torch.zeros_like(numerator)
        weight = d / self.d0 * (d if self.safeguard_warmup else rate)
        for group in self.param_groups:
            for parameters, grads in chunks(group):
                towards, length = self._average(group, parameters, grads, d, weight)
                numerator += d / self.d0 * rate * towards
                denominator += length
        d = torch.where(denominator > 0, torch.maximum(d, self.d_coef * numerator / denominator), d)
        for group in self.param_groups:
            for parameters, _ in chunks(group):
                self._move(group, parameters, d, rate * group["peak"])
        shared["d"], shared["numerator"] = d, numerator

    def _average(
        self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor], d: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take in the gradients; returns how far they point back to the start, and the length of their sum."""
        beta1, beta2 = group["betas"]
        first, averages, squares, sums = self._state(parameters)
        towards = torch._foreach_mul(torch._foreach_sub(first, parameters), grads)
        scaled = torch._foreach_mul(grads, d)
        torch._foreach_lerp_(averages, scaled, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, scaled, scaled, 1.0 - beta2)
        torch._foreach_mul_(sums, math.sqrt(beta2))
        torch._foreach_add_(sums, torch._foreach_mul(grads, weight * group["peak"]))
        return torch.stack([t.sum() for t in towards]).sum(), torch.stack(torch._foreach_norm(sums, 1)).sum()

    def _move(self, group: dict[str, Any], parameters: list[Tensor], d: Tensor, rate: Tensor) -> None:
        _, averages, squares, _ = self._state(parameters)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_mul_(divisors, 1.0 / d)  # as eps is, whose sum with a number needs no look at it
        torch._foreach_add_(divisors, group["eps"] / group["peak"])
        moves = torch._foreach_div(averages, divisors)
        torch._foreach_mul_(moves, -rate / d)
        torch._foreach_mul_(parameters, 1.0 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, moves)

    def _state(self, parameters: list[Tensor]) -> list[list[Tensor]]:
        """Of each parameter its first value, and the averages, squares and sums of its gradients."""
        names = ("average", "square", "sum")
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"first": p.detach().clone()} | {name: torch.zeros_like(p) for name in names}
        return [[self.state[p][name] for p in parameters] for name in ("first", *names)]
