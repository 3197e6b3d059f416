"""Sophia (arXiv:2305.14342): momentum divided by an average of the Hessian's diagonal, clipped entry by entry.

Written here because pytorch_optimizer has no Sophia-G and because its SophiaH takes the estimate inside ``step``,
where the graph of *all* lanes' losses would have to live, and keeps it as a third buffer; here it is given from
outside (:mod:`lora_lab.packing.curvature`) and forgotten. For equal estimates the two move alike, with
``p = rho``, ``lr = lr / rho`` there (tests/optim).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.optim.groups import chunks

EPS = 1e-12


class Sophia(torch.optim.Optimizer):
    """Algorithm 3 of the paper. ``every`` is for its caller: the steps from one :meth:`observe` to the next.

    Args:
        params: parameter groups.
        lr, betas, rho, weight_decay: ``rho`` is the paper's gamma: the larger, the more entries are not clipped.
            Weight decay is decoupled.
        every: steps from one estimate of the Hessian to the next.
        gauss_newton: estimates are Gauss-Newton-Bartlett's (Sophia-G) rather than Hutchinson's (Sophia-H).
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        rho: float,
        weight_decay: float,
        every: int,
        gauss_newton: bool,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay})
        self.every, self.gauss_newton = every, gauss_newton

    @torch.no_grad()
    def observe(self, diagonal: Mapping[nn.Parameter, Tensor]) -> None:
        """Take an estimate of the Hessian's diagonal, parameter by parameter, into the running average."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p in diagonal]
            _, averages = self._state(parameters)
            torch._foreach_lerp_(averages, [diagonal[p] for p in parameters], 1.0 - group["betas"][1])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameters, grads in chunks(group):
                self._move(group, parameters, grads)

    def _move(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        momenta, averages = self._state(parameters)
        torch._foreach_lerp_(momenta, grads, 1.0 - group["betas"][0])
        divisors = torch._foreach_mul(averages, group["rho"])
        torch._foreach_clamp_min_(divisors, EPS)
        moves = torch._foreach_div(momenta, divisors)
        torch._foreach_clamp_min_(moves, -1.0)
        torch._foreach_clamp_max_(moves, 1.0)
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])

    def _state(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"momentum": torch.zeros_like(p), "hessian": torch.zeros_like(p)}
        return [self.state[p]["momentum"] for p in parameters], [self.state[p]["hessian"] for p in parameters]
