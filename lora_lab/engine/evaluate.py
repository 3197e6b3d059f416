"""Held-out loss of several lanes in one packed forward after another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lora_lab.data import Split
from lora_lab.methods import Attachment
from lora_lab.packing.forward import Part, in_passes, token_losses
from lora_lab.packing.paths import Mount
from lora_lab.spec import EvalMetrics


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is evaluated: an adapter (``None``: the base model) on a split, at a step."""

    attachment: Attachment | None
    split: Split
    step: int
    batch_size: int


@torch.no_grad()
def evaluate(mount: Mount, candidates: Sequence[Candidate]) -> list[EvalMetrics]:
    """Mean loss (nats) and arg-max accuracy over each candidate's supervised held-out tokens.

    ``batch_size`` sequences of each candidate go through the base together, shortest sequences together.
    ``seconds`` is each one's equal share of the wall time.
    """
    started = time.monotonic()
    orders = [np.argsort(c.split.lengths, kind="stable").tolist() for c in candidates]
    losses, hits, counts = [0.0] * len(candidates), [0] * len(candidates), [0] * len(candidates)
    position = [0] * len(candidates)
    while any(p < len(o) for p, o in zip(position, orders, strict=True)):
        active = [i for i in range(len(candidates)) if position[i] < len(orders[i])]
        parts = []
        for i in active:
            chunk = orders[i][position[i] : position[i] + candidates[i].batch_size]
            position[i] += len(chunk)
            parts.append(Part(candidates[i].attachment, [candidates[i].split.tokens(j) for j in chunk]))
        for together in in_passes(parts, mount.kernels):
            found = token_losses(mount, [parts[place] for place in together])
            for i, result in zip([active[place] for place in together], found, strict=True):
                losses[i] += float(result.losses.double().sum())
                hits[i] += int(result.hits.sum())
                counts[i] += len(result.losses)
    seconds = (time.monotonic() - started) / max(1, len(candidates))
    return [
        EvalMetrics(
            step=c.step,
            loss=losses[i] / max(1, counts[i]),
            tokens=counts[i],
            accuracy=hits[i] / max(1, counts[i]),
            seconds=seconds,
        )
        for i, c in enumerate(candidates)
    ]
