"""Schedules against transformers' own over whole runs, and optimizers against plain torch over 20 steps."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from lora_lab.optim.optimizers import BUILDERS, build
from lora_lab.optim.schedules import CURVES, factor
from lora_lab.spec import OptimizerSpec, ScheduleSpec
from lora_lab.spec.optimizer import OPTIMIZERS, SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_curves_are_those_of_transformers(name: str, warmup: int) -> None:
    """After the warm-up, whose first step has rate 0 there and 1/warmup here."""
    total = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name if name != "constant" else "constant_with_warmup", optimizer, warmup, total)
    for step in range(total):
        mine = factor(ScheduleSpec(name, warmup), step, total)
        if step < warmup:
            assert mine == pytest.approx((step + 1) / warmup)
        else:
            assert mine == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_every_name_has_its_line() -> None:
    assert set(CURVES) == set(SCHEDULES) and set(BUILDERS) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        (
            OptimizerSpec("adamw", lr=0.1, weight_decay=0.2, beta1=0.8, beta2=0.95, eps=1e-6),
            lambda p: torch.optim.AdamW(
                p, lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False
            ),
        ),
        (
            OptimizerSpec("sgd", lr=0.1, weight_decay=0.2, momentum=0.9),
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, momentum=0.9, foreach=False, fused=False),
        ),
    ],
)
def test_an_optimizer_is_torchs_over_20_steps(spec: OptimizerSpec, plain) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    one, other = build(spec, [mine]), plain([theirs])
    for _ in range(20):
        gradient = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
