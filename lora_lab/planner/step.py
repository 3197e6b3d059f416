"""One optimizer step of one lane on tensors without data: what it allocates, when, and how much it computes.

The step is the training loop's: the packed forward of :mod:`lora_lab.packing` and its backward on the model's own
code, and the real optimizer. So neither an architecture nor the loop has a formula here.

The batch is the largest there can be: every sequence ``length`` tokens long.
"""

from __future__ import annotations

import contextlib
import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedModel

from lora_lab.methods import Attachment
from lora_lab.models import BaseModel, load_meta, quantise, role_modules
from lora_lab.models.quantised import constants, prime, steady
from lora_lab.optim.optimizers import build
from lora_lab.optim.sophia import Sophia
from lora_lab.packing.curvature import gauss_newton_bartlett, hutchinson
from lora_lab.packing.forward import Part, losses_of
from lora_lab.packing.head import keeps_logits
from lora_lab.packing.inputs import Inputs, Sequences
from lora_lab.packing.paths import Paths
from lora_lab.packing.phases import heard_by
from lora_lab.packing.stacks import Share
from lora_lab.planner.adapters import attachment, by_role, remembered
from lora_lab.planner.depth import Layers, cut, decoder_layers
from lora_lab.planner.fused import FusedAttention
from lora_lab.planner.lanes import PARTS
from lora_lab.planner.ledger import Ledger
from lora_lab.planner.shape import Shape
from lora_lab.planner.timeline import Timeline
from lora_lab.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Step:
    """A traced step: its moments, and of its trainable parameters how many there are by role, and their bytes."""

    timeline: Timeline
    by_role: dict[str, int]
    own_bytes: int
    alone: bool
    keeps_logits: bool


@lru_cache(maxsize=8)
def shortened(model: ModelSpec, device: str, layers: int | None = None) -> PreTrainedModel:
    """The model on the meta device, with the attention it has on ``device`` and its first so many decoder layers, or
    all of them. To be copied."""
    found = load_meta(model, device)
    if layers is not None:
        cut(found, layers)
    return found


def step_of(shape: Shape, layers: int | None = None) -> Step:
    """One step of one lane, with all of the model's layers or the first few of them."""
    model = copy.deepcopy(shortened(shape.model, shape.device, layers))
    ledger = Ledger(PARTS)
    marks = None if layers is None else Layers(decoder_layers(model, layers), ledger.mark)
    prime(shape.model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")  # where tensors without data pretend to be; on CUDA as much is allocated
        model.requires_grad_(False)
        if shape.model.quantization != "none":
            quantise(model, shape.model)
            steady(model, shape.model)
        _book_weights(model, ledger)
        base = BaseModel(model, None, shape.model, role_modules(model, shape.model), torch.device("cpu"))
        with ledger, heard_by(ledger.phase, None if marks is None else marks.begins):
            with ledger.phase("adapters"):
                found = attachment(base, shape.method)
            paths = _train(base, shape, ledger, found)
    return Step(
        timeline=Timeline.of(PARTS, ledger.moments, ledger.marks, ledger.flops),
        by_role=by_role(found, base),
        own_bytes=sum(parameter.nbytes for parameter in found.parameters().values()),
        alone=found.solo is not None,
        keeps_logits=found.solo is not None or keeps_logits(paths, Share(found, 0, shape.length)),
    )


def _book_weights(model: PreTrainedModel, ledger: Ledger) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        ledger.book(tensor, "weights")
    for module in model.modules():
        if scales := constants(module):
            ledger.book(module.get_parameter("weight"), "quantised_weights")
            for tensor in scales:
                ledger.book(tensor, "quantisation_constants")


def _sequences(shape: Shape) -> Sequences:
    ids, supervised = np.zeros(shape.length, dtype=np.int64), np.zeros(shape.length, dtype=bool)
    supervised[shape.length - shape.supervised :] = True
    return [(ids, supervised)] * shape.rows


def _train(base: BaseModel, shape: Shape, ledger: Ledger, found: Attachment) -> Paths:
    """A forward, backward and update that find the optimizer's state there, as all but the first step do.

    Returns the model as it was mounted.
    """
    part = Part(found, _sequences(shape), noise=0, recompute=shape.recompute)
    sequences = part.laid_out
    with _disable_current_modes():  # where tokens lie is known
        inputs = Inputs.of([sequences], torch.device("cpu"), kernels=shape.device)
    paths, parameters = Paths(base.model, shape.device), list(found.parameters().values())
    if not parameters:
        ledger.begin()
        with ledger.phase("activations"), torch.no_grad():
            losses_of(paths, [part], inputs)
        return paths
    paths.mount(found)
    with ledger.phase("adapters"):
        optimizer = build(shape.optimizer, found.parameters())
    with ledger.phase("gradients"):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
    with ledger.phase("optimizer"):
        optimizer.step()
        kept = remembered(found)
    if not shape.accumulates:
        for parameter in parameters:  # as a lane does: an optimizer of flattened parameters would not
            parameter.grad = None
    ledger.begin()
    with ledger.phase("activations"), _kernels(shape, found, ledger):
        (result,) = losses_of(paths, [part], inputs)
        result.losses.sum().backward()
        del result
    ledger.mark(("after", 0))
    if isinstance(optimizer, Sophia):
        _estimate(base, shape, ledger, found, optimizer)
    with ledger.phase("workspace"):
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    del kept
    return paths


def _kernels(shape: Shape, found: Attachment, ledger: Ledger) -> AbstractContextManager[Any]:
    """What a solo lane's model attends with: fused kernels on CUDA. The packed step chooses by itself."""
    fused = shape.device == "cuda" and found.solo is not None
    return FusedAttention(ledger.count) if fused else contextlib.nullcontext()


def _estimate(base: BaseModel, shape: Shape, ledger: Ledger, found: Attachment, optimizer: Sophia) -> None:
    """What a Hessian-minded optimizer asks for every few steps, one lane after the other, its cost spread over them."""
    before, micros = ledger.flops, 2 if shape.accumulates else 1
    how = gauss_newton_bartlett if optimizer.gauss_newton else hutchinson
    with ledger.phase("workspace"):
        diagonal = how(base, found, [_sequences(shape)] * micros, torch.Generator())
    for tensor in diagonal:
        ledger.book(tensor, "gradients")
    with ledger.phase("workspace"):
        optimizer.observe(dict(zip(found.parameters().values(), diagonal, strict=True)))
    ledger.flops = before + Fraction(ledger.flops - before, micros * optimizer.every)
