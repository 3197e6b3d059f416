"""Memory as a measured result: each configuration alone in a fresh process, beside what the planner says of it."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_lab.errors import RunFailed, SpecError, nearest
from lora_lab.files import read_json, write_json
from lora_lab.planner import Plan, plan
from lora_lab.spec import ROLES, RunSpec, to_tree
from lora_lab.spec.method import METHODS
from lora_lab.worker import alone
from lora_lab.worker.capacity import WITHOUT_LIMIT

PRELOADED = ["lora_lab.worker.alone", "lora_lab.methods.lora", "transformers.models.llama.modeling_llama"]
STEPS = 3
"""Steps that run freely, for the clock and the resident set."""

COMPARISONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "optimizers": tuple(
        {"method.name": "lora", "method.roles": ROLES, "method.r": r, "optimizer.name": name}
        for r in (8, 256)
        for name in ("adamw", "sgd")
    ),
    "quantisation": tuple({"model.quantization": kind} for kind in ("none", "nf4", "fp4", "int8")),
    "lengths": tuple({"data.max_length": length} for length in (256, 512, 1024, 2048)),
    "ranks": tuple({"method.name": "lora", "method.roles": ROLES, "method.r": r} for r in (8, 16, 256)),
    "full": tuple({"method.name": name} for name in ("lora", "full")),
    "methods": tuple({"method.name": name} for name in METHODS),
}
"""The comparisons that the article draws conclusions from, as changes of the run that is given, and all methods."""


@dataclass(frozen=True)
class Measured:
    """What one configuration took, alone in a process of its own.

    ``live_bytes`` is the peak of live tensors in a step, the base model included: what a plan predicts. ``rss_bytes``
    is the most that was resident, of which the process had ``rss_before_bytes`` before it loaded anything;
    ``allocated_bytes`` and ``reserved_bytes`` are those of CUDA's allocator (``None`` on a CPU).
    """

    spec: RunSpec
    plan: Plan
    trainable_parameters: int
    live_bytes: int
    rss_bytes: int
    rss_before_bytes: int
    allocated_bytes: int | None
    reserved_bytes: int | None
    seconds_per_step: float

    @property
    def error(self) -> float:
        """By how much of the measured peak the plan is off; above 0: it said too much."""
        return self.plan.peak_bytes / (self.allocated_bytes or self.live_bytes) - 1

    def to_tree(self) -> dict[str, Any]:
        """A JSON tree: the measured numbers, the plan beside them."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("spec", "plan")}
        said = {"predicted_bytes": self.plan.peak_bytes, "parts": self.plan.parts, "error": self.error}
        return numbers | said | {"flops_per_step": self.plan.flops_per_step}


def comparison(name: str) -> tuple[Mapping[str, Any], ...]:
    """The points of a comparison by name.

    Raises:
        SpecError: there is none of that name.
    """
    if name not in COMPARISONS:
        known = ", ".join(COMPARISONS)
        raise SpecError(f"--compare: no comparison {name!r}{nearest(name, COMPARISONS)} Known: {known}.")
    return COMPARISONS[name]


def lean(spec: RunSpec) -> RunSpec:
    """``spec`` with no more micro-batches in a step than its memory depends on: one, or two where there are several.

    An optimizer that estimates the Hessian every few steps does so in each.
    """
    micro, optimizer = spec.budget.micro, spec.optimizer
    if "hessian_every" in optimizer.own:
        spec = replace(spec, optimizer=replace(optimizer, hessian_every=1))
    budget = replace(spec.budget, batch_size=min(spec.budget.batch_size, 2 * micro), micro_batch_size=micro)
    return replace(spec, budget=replace(budget, steps=10**6, epochs=None))


def measure(spec: RunSpec, *, device: str = "auto", steps: int = STEPS) -> Measured:
    """Train ``spec`` for a few steps alone in a fresh process, on sequences of ``data.max_length`` tokens.

    The process is the fork of one that has imported what is needed and done nothing else.
    A step of many micro-batches is cut to two, which take as much memory.

    Raises:
        ModelError, MethodError: the run cannot be planned.
        SpecError: it takes several processes.
        RunFailed: the process could not do it, or was killed.
    """
    if spec.model.divided:
        raise SpecError(f"model.shard={spec.model.shard}: one process is measured; give model.shard=none.")
    run = lean(spec)
    planned = plan(run, memory=WITHOUT_LIMIT, device=device, remedies=False)
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "asked.json", Path(folder) / "answer.json"
        write_json(asked, {"spec": to_tree(run), "device": device, "steps": steps}, durable=False)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=alone.answer, args=(asked, answer), name="alone")
        process.start()
        process.join()
        if not answer.exists():
            why = "it was killed (out of memory?)" if (process.exitcode or 0) < 0 else "see above"
            raise RunFailed(f"the process ended with code {process.exitcode} and no answer: {why}.")
        found = read_json(answer)
    if "error" in found:
        raise RunFailed(found["error"])
    return Measured(spec=spec, plan=planned, **found)
