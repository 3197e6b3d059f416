"""Estimates of the diagonal of a lane's Hessian, for the optimizers that want one every few steps (Sophia).

The lane's whole batch goes through the base once more (:mod:`lora_lab.packing.curvature`). Labels and probes depend on
the run's seed and the step alone, as its dropout does.
"""

from __future__ import annotations

import time

import torch

from lora_lab.engine.cost import Flops
from lora_lab.engine.lane import Lane, noise_of
from lora_lab.models import BaseModel
from lora_lab.optim.sophia import Sophia
from lora_lab.packing.curvature import gauss_newton_bartlett, hutchinson
from lora_lab.packing.inputs import count_targets

SECOND_ORDER = 2
"""A Hessian-vector product differentiates a forward and backward once more: twice their floating-point operations."""

AFTER = -1
"""The estimate's place among a step's micro-batches, from which its random numbers are."""


def due(lane: Lane) -> bool:
    """The lane's coming step is one before which its optimizer wants an estimate."""
    return isinstance(lane.optimizer, Sophia) and lane.step % lane.optimizer.every == 0


def estimate(base: BaseModel, lane: Lane, flops: Flops) -> None:
    """Give ``lane.curvature`` an estimate at its parameters, and count its cost as the lane's.

    Mean loss per supervised token of the step's batch, as the gradient is of; a batch without one gives no estimate.
    """
    started = time.monotonic()
    assert isinstance(lane.optimizer, Sophia)
    batch = list(lane.micro_batches())
    targets = sum(map(count_targets, batch))
    if targets:
        how = gauss_newton_bartlett if lane.optimizer.gauss_newton else hutchinson
        generator = torch.Generator(base.device).manual_seed(noise_of(lane.spec.seed, lane.step, AFTER))
        found = how(base, lane.attachment, batch, generator)
        lane.curvature = dict(zip(lane.parameters, found, strict=True))
    order = 1 if lane.optimizer.gauss_newton else SECOND_ORDER
    lane.flops += order * sum(flops.training(micro, lane.attachment) for micro in batch)
    lane.seconds += time.monotonic() - started
