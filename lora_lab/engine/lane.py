"""A lane: one run while it trains. Everything that belongs to the run alone lives here.

Data order, initialisation, dropout, optimizer, schedule, clipping, best adapter and checkpoints are the
lane's own, so that what it computes does not depend on its company.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_lab.data import BatchOrder, Split, Tokenised
from lora_lab.engine import checkpoint
from lora_lab.errors import CheckpointError
from lora_lab.methods import Attachment, attach
from lora_lab.models import BaseModel
from lora_lab.optim import optimizers, schedules
from lora_lab.optim.sophia import Sophia
from lora_lab.optim.state import export_state, import_state
from lora_lab.packing.forward import Part
from lora_lab.packing.inputs import Sequences
from lora_lab.spec import EvalMetrics, RunSpec, StepMetrics

EXPLODED = 3.0
"""A lane diverges when its loss is this many times what it began with (1 nat at least), five steps in a row."""
TAIL = 0.1
"""Share of a run's last steps over which its final training loss is averaged (at least 5 steps)."""


@dataclass(frozen=True, eq=False)
class LaneJob:
    """A run for the engine: its spec, its tokenised data, and the folder of its files.

    ``key`` is what its checkpoints are known by, where that is not the spec's (other micro-batches, a branch). After
    step ``stem`` a checkpoint is kept for longer runs to begin from.
    """

    run: str
    spec: RunSpec
    data: Tokenised
    folder: Path
    key: str | None = None
    stem: int | None = None

    @property
    def checkpoint_key(self) -> str:
        """The key its checkpoints carry."""
        return self.key or self.spec.key


class Lane:
    """One run in training; resumes from the checkpoint in its folder if there is one."""

    def __init__(self, job: LaneJob, base: BaseModel) -> None:
        spec = job.spec
        self.job, self.spec, self.run = job, spec, job.run
        self.order = BatchOrder.of(job.data.train, spec.data, spec.budget.batch_size, spec.seed)
        self.attachment: Attachment = attach(base, spec.method, spec.seed, self._sequences)
        named = self.attachment.parameters()
        self.parameters = list(named.values())
        movable = self.attachment.movable
        self.optimizer = optimizers.build(spec.optimizer, named, movable=movable) if named else None
        self._names = {id(parameter): name for name, parameter in named.items()}
        self.curvature: dict[torch.nn.Parameter, Tensor] | None = None
        self.generator = torch.Generator(device=base.device).manual_seed(spec.seed)
        self.total = spec.budget.total_steps(self.order.rows) if self.parameters else 0
        self.step = 0
        self.tokens = 0
        self.flops = 0.0
        self.seconds = 0.0
        self.peak = 0
        self.tail: list[tuple[float, int]] = []
        self.last: EvalMetrics | None = None
        self.best: EvalMetrics | None = None
        self.best_tensors: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()
        self.first_step = 0
        self.first_loss: float | None = None
        self.note: str | None = None
        self._resume()

    def noted(self, what: str) -> None:
        """Have ``what`` said beside the run's result."""
        self.note = what if self.note is None else f"{self.note}; {what}"

    def _sequences(self, count: int) -> list[np.ndarray]:
        """Token ids of the first ``count`` training sequences in the run's order, for inits that look at data."""
        steps = range(math.ceil(count / self.spec.budget.batch_size))
        rows = [int(i) for step in steps for i in self.order.batch(step)]
        return [self.job.data.train.tokens(i)[0] for i in rows[:count]]

    # -- one optimizer step ---------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """All steps of the budget are taken."""
        return self.step >= self.total

    def micro_batches(self) -> Iterator[Sequences]:
        """The sequences of the coming step, a micro-batch at a time."""
        for examples in self.order.micro_batches(self.step, self.spec.budget.micro):
            yield [self.job.data.train.tokens(i) for i in examples.tolist()]

    def part(self, sequences: Sequences, turn: int) -> Part:
        """This lane's part of a training forward, the step's ``turn``-th micro-batch."""
        noise = noise_of(self.spec.seed, self.step, turn)
        return Part(self.attachment, sequences, noise, self.spec.budget.checkpointing)

    def update(self) -> tuple[float, float, bool]:
        """Clip and apply the gradients; returns (gradient norm before clipping, learning rate, finite).

        A lane whose gradient is not finite is left as it was before the step.
        """
        assert self.optimizer is not None
        self.attachment.collect()
        penalty = self.attachment.penalty()
        if penalty is not None:
            penalty.backward()
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = self.attachment.norm(grads)
        lr = self.spec.optimizer.lr * schedules.factor(self.spec.schedule, self.step, self.total)
        value = float(norm)
        if not math.isfinite(value):
            return value, lr, False
        if self.curvature is not None and not all(bool(h.isfinite().all()) for h in self.curvature.values()):
            return math.nan, lr, False
        limit = self.spec.optimizer.max_grad_norm
        if limit is not None:
            torch._foreach_mul_(grads, torch.clamp(limit / (norm + 1e-6), max=1.0))
        optimizers.set_rate(self.optimizer, lr)
        if self.curvature is not None and isinstance(self.optimizer, Sophia):
            self.optimizer.observe(self.curvature)
        self.optimizer.step()
        self.attachment.after_step(self.step, self.total)
        return value, lr, True

    def clear_gradients(self) -> None:
        """Forget the gradients of the step, and its estimate of the Hessian."""
        self.curvature = None
        for parameter in self.parameters:
            parameter.grad = None

    def advance(self, loss: float, norm: float, lr: float, tokens: int, targets: int, seconds: float) -> StepMetrics:
        """Count a step that was taken."""
        self.step += 1
        self.tokens += tokens
        self.tail.append((loss, targets))
        if self.first_loss is None:
            self.first_loss = loss
        del self.tail[: -max(5, math.ceil(TAIL * self.total))]
        return StepMetrics(
            step=self.step,
            epoch=self.order.epoch(self.step),
            loss=loss,
            lr=lr,
            grad_norm=norm,
            tokens=tokens,
            supervised_tokens=targets,
            seconds=seconds,
        )

    @property
    def exploded(self) -> bool:
        """The loss has left for good, though it is finite (see :data:`EXPLODED`)."""
        if self.first_loss is None or len(self.tail) < 5:
            return False
        return min(loss for loss, _ in self.tail[-5:]) > EXPLODED * max(self.first_loss, 1.0)

    @property
    def train_loss(self) -> float | None:
        """Mean loss per supervised token over the run's last steps."""
        targets = sum(n for _, n in self.tail)
        return sum(loss * n for loss, n in self.tail) / targets if targets else None

    # -- evaluation -----------------------------------------------------------------------------------

    @property
    def evaluation_due(self) -> bool:
        """The step just taken is one after which the lane is evaluated."""
        return self.done or self.evaluation_regular

    @property
    def evaluation_regular(self) -> bool:
        """... and would be were the run longer."""
        every = self.spec.evaluation.every_steps
        return every is not None and self.step > 0 and self.step % every == 0

    @property
    def held_out(self) -> Split:
        """The held-out split."""
        return self.job.data.evaluation

    def evaluated(self, metrics: EvalMetrics) -> None:
        """Remember an evaluation, and the adapter if it is the best so far and training goes on."""
        self.last = metrics
        if math.isfinite(metrics.loss) and (self.best is None or metrics.loss < self.best.loss):
            self.best = metrics
            if not self.evaluation_regular:
                return  # the run's end: the best adapter is the last one
            self.best_tensors = {k: v.detach().clone() for k, v in self.attachment.state_dict().items()}

    def evaluating(self) -> AbstractContextManager[None]:
        """Within, the adapter is the one to evaluate and save, which need not be the one that trains."""
        return optimizers.evaluating(self.optimizer)

    def finish(self) -> None:
        """Leave the adapter as it is evaluated and saved; this lane trains no more."""
        optimizers.finish(self.optimizer)

    # -- files ----------------------------------------------------------------------------------------

    def save(self, file: str = checkpoint.FILE) -> None:
        """Write the checkpoint from which this lane goes on as if it had never stopped."""
        tensors = {f"adapter.{k}": v for k, v in self.attachment.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best_tensors.items()}
        tensors["generator"] = self.generator.get_state()
        state: dict[str, Any] = {
            "key": self.job.checkpoint_key,
            "step": self.step,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds": self.seconds,
            "peak": self.peak,
            "tail": self.tail,
            "first_loss": self.first_loss,
            "last": _tree(self.last),
            "best": _tree(self.best),
            "optimizer": {},
        }
        if self.optimizer is not None:
            found, state["optimizer"] = export_state(self.optimizer)
            tensors |= {f"optimizer.{k}": v for k, v in found.items()}
        tensors = self.attachment.gathered(tensors, self._owner)
        if self.attachment.shards is None or self.attachment.shards.first:
            checkpoint.write(self.job.folder, tensors, state, file)
        self.saved_at = time.monotonic()

    def save_adapter(self, base_name: str) -> Path | None:
        """Write the adapter in PEFT's format; the best one beside it where an earlier one was better.

        Returns the folder of the last adapter; ``None`` for an empty mask, which has none.
        """
        if not self.parameters:
            return None
        folder = self.job.folder / "adapter"
        self.attachment.save(folder, base_name=base_name)
        if self.best is not None and self.last is not None and self.best.step < self.last.step:
            now = {k: v.detach().clone() for k, v in self.attachment.state_dict().items()}
            self.attachment.load_state_dict(self.best_tensors)
            self.attachment.save(self.job.folder / "best", base_name=base_name)
            self.attachment.load_state_dict(now)
        return folder

    def _resume(self) -> None:
        try:
            found = checkpoint.read(self.job.folder)
        except CheckpointError as error:
            path = self.job.folder / checkpoint.FILE
            with contextlib.suppress(FileNotFoundError):  # another process of this lane was faster
                path.replace(path.with_suffix(".damaged"))
            self.noted(f"its checkpoint was damaged, so it was trained from its beginning again ({error})")
            return
        if found is None:
            return
        tensors, state = found
        if state["key"] != self.job.checkpoint_key:
            raise CheckpointError(
                f"{self.job.folder / checkpoint.FILE}: belongs to another experiment (key {state['key'][:12]}, "
                f"this run has {self.job.checkpoint_key[:12]}). Delete it, or choose another folder."
            )
        tensors = self.attachment.taken(tensors, self._owner)
        self.attachment.load_state_dict(_under("adapter.", tensors))
        self.best_tensors = _under("best.", tensors)
        self.generator.set_state(tensors["generator"])
        self.step = self.first_step = state["step"]
        self.tokens, self.flops, self.seconds = state["tokens"], state["flops"], state["seconds"]
        self.peak = state["peak"]
        self.tail = [(loss, count) for loss, count in state["tail"]]
        self.first_loss = state.get("first_loss")
        self.last = EvalMetrics(**state["last"]) if state["last"] else None
        self.best = EvalMetrics(**state["best"]) if state["best"] else None
        if self.optimizer is not None:
            import_state(self.optimizer, _under("optimizer.", tensors) | state["optimizer"])

    def _owner(self, name: str) -> str | None:
        """The parameter to which a tensor of a checkpoint belongs, by its name there."""
        kind, _, rest = name.partition(".")
        if kind != "optimizer" or self.optimizer is None:
            return rest if kind in ("adapter", "best") and rest in self._names.values() else None
        number = rest.partition(".")[0]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return self._names.get(id(parameters[int(number)])) if number.isdigit() else None

    @property
    def own_bytes(self) -> int:
        """Bytes this lane alone holds: adapter, as many of gradients, and optimizer state."""
        total = 2 * sum(p.numel() * p.element_size() for p in self.parameters)
        if self.optimizer is not None:
            for values in self.optimizer.state.values():
                total += sum(v.numel() * v.element_size() for v in values.values() if isinstance(v, Tensor))
        return total


def noise_of(seed: int, step: int, turn: int) -> int:
    """What seeds the dropout of one forward of a run: its ``turn``-th micro-batch of step ``step`` (0-based)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}.{step}.{turn}".encode(), digest_size=8).digest())


def _tree(metrics: EvalMetrics | None) -> dict[str, Any] | None:
    return None if metrics is None else {name: value for name, value in vars(metrics).items() if name != "scores"}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
