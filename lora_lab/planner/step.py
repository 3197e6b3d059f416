"""One optimizer step of one lane on tensors without data: what it allocates, when, and how much it computes.

The step is the training loop's: the packed forward of :mod:`lora_lab.packing` and its backward on the model's own
code, and the real optimizer. So neither an architecture nor the loop has a formula here.

The batch is the largest there can be: every sequence ``length`` tokens long.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedModel

from lora_lab.methods import Attachment
from lora_lab.methods.inits import MUTATING
from lora_lab.models import BaseModel, load_meta, quantise, role_modules, total_parameters
from lora_lab.models.quantised import constants, prime, steady
from lora_lab.optim.optimizers import build
from lora_lab.optim.sophia import Sophia
from lora_lab.packing.curvature import gauss_newton_bartlett, hutchinson
from lora_lab.packing.forward import Part, losses_of
from lora_lab.packing.head import block_rows, keeps_logits
from lora_lab.packing.inputs import Inputs, Sequences
from lora_lab.packing.passes import passes
from lora_lab.packing.paths import Paths
from lora_lab.packing.phases import heard_by
from lora_lab.packing.stacks import Share
from lora_lab.planner.adapters import attachment, by_role
from lora_lab.planner.depth import Layers, cut, decoder_layers, depths
from lora_lab.planner.fused import FusedAttention
from lora_lab.planner.ledger import Ledger
from lora_lab.planner.timeline import Crest, Timeline, extended
from lora_lab.spec import MethodSpec, ModelSpec, OptimizerSpec, RunSpec, pairs
from lora_lab.spec.method import METHODS

PARTS = (
    "weights",
    "quantised_weights",
    "quantisation_constants",
    "adapters",
    "gradients",
    "optimizer",
    "logits",
    "workspace",
    "activations",
)
"""What a peak is made of. ``quantisation_constants`` are the scales and code tables of quantised weights;
``activations`` what the forward keeps for the backward, their gradients and casts; ``logits`` the same of the head;
``workspace`` what one lane after the other, or one layer after the other, makes for a moment."""

SHARED = ("weights", "quantised_weights", "quantisation_constants", "workspace")
"""Parts that a pack holds once, however many lanes it has; of the others each lane has its own."""

KEPT = ("adapters", "optimizer")
"""Parts that a lane holds all the time, and not only while its rows go through the base."""

MOST_LANES = 4096
"""Lanes beyond which nobody asks how many fit."""


@dataclass(frozen=True)
class Shape:
    """All that the memory of a step depends on. Equal shapes are traced once.

    ``rows`` sequences of ``length`` tokens, ``supervised`` of them targets, make one forward;
    ``accumulates`` says that a step has several, ``recompute`` that layers keep only their input for the backward.
    ``device`` is ``cpu`` or ``cuda``.
    """

    model: ModelSpec
    method: MethodSpec
    optimizer: OptimizerSpec
    rows: int
    length: int
    supervised: int
    accumulates: bool
    recompute: bool
    device: str

    @staticmethod
    def of(spec: RunSpec, device: str, length: int | None = None, supervised: int | None = None) -> Shape:
        """The shape of a run's largest step; ``length`` and ``supervised`` tokens per sequence where known."""
        length = min(length or spec.data.max_length, spec.data.max_length)
        optimizer = spec.optimizer
        return Shape(
            model=spec.model,
            method=_method_shape(spec.method),
            optimizer=OptimizerSpec(
                optimizer.name.removeprefix("paged_"),  # as many bytes, if not all of them at once on the device
                momentum=0.5 if optimizer.own.get("momentum") else 0.0,
                lora_plus_ratio=None if optimizer.lora_plus_ratio in (None, 1.0) else 2.0,
                layer_decay=None if optimizer.layer_decay is None else 0.5,
                hessian_every=optimizer.own.get("hessian_every"),
            ),
            rows=spec.budget.micro,
            length=length,
            supervised=max(1, min(length - 1, supervised or length)),
            accumulates=spec.budget.micro < spec.budget.batch_size,
            recompute=spec.budget.checkpointing,
            device=device,
        )

    def shrunk(self, **changes: Any) -> Shape:
        """This shape with other ``rows`` or ``length``; the supervised share stays."""
        new = replace(self, **changes)
        return replace(new, supervised=max(1, min(new.length - 1, self.supervised * new.length // self.length)))


def _method_shape(method: MethodSpec) -> MethodSpec:
    """``method`` with only what its memory depends on: how large numbers are does not matter, nor how they begin."""
    if method.attaches_nothing:
        return MethodSpec(roles=())
    kept = {name: getattr(method, name) for name in METHODS[method.name]}
    kept |= {"alpha": 1.0, "alpha_over_r": None, "rslora": False} if method.reads("alpha") else {}
    if method.reads("dropout"):
        kept["dropout"] = 0.5 if method.dropout else 0.0
    if method.reads("init"):
        kept |= {"init": "pissa" if method.init.startswith(MUTATING) else "default", "calibration_sequences": 1}
        kept |= {"adapters": pairs(), "weights": pairs(), "combine": "sum", "density": 0.5}
    kept |= {"prompt_init": "random", "prompt_text": None} if method.reads("prompt_init") else {}
    return MethodSpec(method.name, **kept)


@dataclass(frozen=True)
class Trace:
    """A traced step of one lane; ``flops`` are those of one forward and backward.

    ``crests`` are the moments that can be the peak for some number of lanes. ``own_bytes`` are those of the trainable
    parameters, and of their gradients. ``rows`` tokens of a lane go through the base at once, and ``targets`` of them
    are supervised; ``alone`` says that no other lane's go with them, ``keeps_logits`` that its logits are held until
    its backward.
    """

    trainable_parameters: int
    total_parameters: int
    by_role: tuple[tuple[str, int], ...]
    crests: tuple[Crest, ...]
    flops: int
    own_bytes: int
    rows: int
    targets: int
    alone: bool
    keeps_logits: bool
    device: str

    def parts(self, lanes: int = 1) -> dict[str, int]:
        """Bytes by part at the peak of a pack of so many such lanes.

        Lanes that go through the base in another pass hold no activations meanwhile, and all of their gradients.
        """
        together = self._together(lanes)
        return max((self._at(crest, lanes, together) for crest in self.crests), key=lambda held: sum(held.values()))

    def peak(self, lanes: int = 1) -> int:
        """Bytes at the peak of a pack of so many such lanes."""
        return sum(self.parts(lanes).values())

    def lanes_in(self, budget: int) -> int:
        """How many such lanes stay within ``budget`` bytes; 0 when not even one does."""
        if self.peak(1) > budget:
            return 0
        too_many = 2
        while too_many <= MOST_LANES and self.peak(too_many) <= budget:
            too_many *= 2
        return bisect.bisect_right(range(1, too_many), budget, key=self.peak)

    def _together(self, lanes: int) -> int:
        alone = range(lanes) if self.alone else ()
        return max(map(len, passes([self.rows] * lanes, self.device, alone)))

    def _at(self, crest: Crest, lanes: int, together: int) -> dict[str, int]:
        held = {part: crest.parts.get(part, 0) for part in PARTS}
        for part in PARTS:
            if part not in SHARED:
                held[part] *= lanes if part in KEPT else together
        held["gradients"] += self.own_bytes * (lanes - together)
        if not self.keeps_logits:  # a block of them at a time, of whichever lanes
            block = block_rows(self.device)
            one = min(self.targets, block)
            held["logits"] = crest.parts.get("logits", 0) * min(together * self.targets, block) // one
        return held


def peak_together(traces: Sequence[Trace]) -> int:
    """Bytes at the peak of a pack of lanes of one base that take as ``traces`` say: exact where all are alike.

    Of different ones it is the most that there can be: every lane of a pass at its own peak at one moment.
    """
    first = traces[0]
    if all(other == first for other in traces):
        return first.peak(len(traces))
    alone = [place for place, trace in enumerate(traces) if trace.alone]
    most = [trace.parts() for trace in traces]
    own = [sum(size for part, size in held.items() if part not in SHARED) for held in most]
    kept = [sum(held[part] for part in KEPT) + trace.own_bytes for held, trace in zip(most, traces, strict=True)]
    together = passes([trace.rows for trace in traces], first.device, alone)
    busiest = max(sum(own[i] if i in lanes else kept[i] for i in range(len(traces))) for lanes in together)
    return busiest + sum(max(held[part] for held in most) for part in SHARED)


@dataclass(frozen=True, eq=False)
class Step:
    """A traced step: its moments, and of its trainable parameters how many there are by role, and their bytes."""

    timeline: Timeline
    by_role: dict[str, int]
    own_bytes: int
    alone: bool
    keeps_logits: bool


@lru_cache(maxsize=512)
def trace(shape: Shape) -> Trace:
    """Trace one step of ``shape``, without memory to speak of.

    Where a model's layers repeat, two short versions of it are traced instead of all of it
    (:mod:`lora_lab.planner.timeline`): half a second for a 7B model.

    Raises:
        ModelError, MethodError: the model's configuration cannot be read, or lacks a role that is asked for.
    """
    step = _step_of_short(shape) or step_of(shape)
    crests = step.timeline.crests(SHARED if step.keeps_logits else (*SHARED, "logits"))
    by_role = tuple(step.by_role.items())
    total = sum(step.by_role.values())
    return Trace(
        trainable_parameters=total,
        total_parameters=total_parameters(_shortened(shape.model, shape.device)),
        by_role=by_role,
        crests=crests,
        flops=step.timeline.flops,
        own_bytes=step.own_bytes,
        rows=shape.rows * shape.length,
        targets=shape.rows * shape.supervised,
        alone=step.alone,
        keeps_logits=step.keeps_logits,
        device=shape.device,
    )


@lru_cache(maxsize=8)
def _shortened(model: ModelSpec, device: str, layers: int | None = None) -> PreTrainedModel:
    """The model on the meta device, with the attention it has on ``device`` and its first so many decoder layers, or
    all of them. To be copied."""
    found = load_meta(model, device)
    if layers is not None:
        cut(found, layers)
    return found


def _step_of_short(shape: Shape) -> Step | None:
    """The step of the whole model as two short versions of it tell it; ``None`` where they do not."""
    method = shape.method
    if method.layers or not method.one_rank or method.reads("top_layers"):
        return None  # layers that are alike carry different adapters
    cuts = depths(_shortened(shape.model, shape.device))
    if cuts is None:
        return None
    short, long = step_of(shape, cuts.short), step_of(shape, cuts.long)
    timeline = extended(short.timeline, long.timeline, cuts.short, cuts.period, cuts.times)
    if timeline is None:
        return None
    counts = {role: n + cuts.times * (long.by_role[role] - n) for role, n in short.by_role.items()}
    own_bytes = short.own_bytes + cuts.times * (long.own_bytes - short.own_bytes)
    return Step(timeline, counts, own_bytes, short.alone, short.keeps_logits)


def step_of(shape: Shape, layers: int | None = None) -> Step:
    """One step of one lane, with all of the model's layers or the first few of them."""
    model = copy.deepcopy(_shortened(shape.model, shape.device, layers))
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
    if not shape.accumulates:
        optimizer.zero_grad(set_to_none=True)
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
    return paths


def _kernels(shape: Shape, found: Attachment, ledger: Ledger) -> AbstractContextManager[Any]:
    """What a solo lane's model attends with: fused kernels on CUDA. The packed step chooses by itself."""

    def count(flops: int) -> None:
        ledger.flops += flops

    return FusedAttention(count) if shape.device == "cuda" and found.solo is not None else contextlib.nullcontext()


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
    ledger.flops = before + (ledger.flops - before) // (micros * optimizer.every)
