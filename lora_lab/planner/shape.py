"""What the memory of a step depends on: of two runs with equal shapes only one is traced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lora_lab.methods.inits import MUTATING
from lora_lab.spec import MethodSpec, ModelSpec, OptimizerSpec, RunSpec, pairs
from lora_lab.spec.method import METHODS


@dataclass(frozen=True)
class Shape:
    """All that the memory of a step depends on. Equal shapes are traced once.

    ``rows`` sequences of ``length`` tokens, ``supervised`` of them targets, make one forward;
    ``accumulates`` says that a step has several, ``recompute`` that layers keep only their input for the backward,
    ``keeps_best`` that the best adapter of several evaluations is kept beside the one that trains.
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
    keeps_best: bool
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
            keeps_best=spec.evaluation.every_steps is not None,
            device=device,
        )

    def at_rank(self, r: int) -> Shape:
        """This shape with LoRA's rank ``r``."""
        return replace(self, method=replace(self.method, r=r))

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
