"""Estimates of the diagonal of a lane's Hessian, for the optimizers that want one every few steps (Sophia).

The lane's whole batch goes through the base once more, alone and without dropout, by plain differentiable torch: the
packed step's own backward functions can be differentiated only once, and attention takes its plain form, the only one
with a second derivative. Labels and probes depend on the run's seed and the step alone, as its dropout does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lora_lab.engine.cost import Flops
from lora_lab.engine.lane import Lane, noise_of
from lora_lab.methods import Attachment
from lora_lab.models import BaseModel, frozen_weight
from lora_lab.optim.sophia import Sophia
from lora_lab.packing.inputs import Sequences, count_targets

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


def gauss_newton_bartlett(
    base: BaseModel, attachment: Attachment, batch: list[Sequences], generator: torch.Generator
) -> list[Tensor]:
    """``B g * g`` of the gradient ``g`` of the mean loss over ``B`` labels drawn from the model itself.

    Its expectation is the diagonal of the Gauss-Newton matrix (arXiv:2305.14342, algorithm 2).
    """
    parameters = list(attachment.parameters().values())
    targets = sum(map(count_targets, batch))
    gradient = [torch.zeros_like(p) for p in parameters]
    for sequences in batch:
        logits, _ = supervised_logits(base, attachment, sequences)
        labels = draw(logits.detach(), generator)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / targets
        torch._foreach_add_(gradient, _gradient(loss, parameters))
    return [targets * g * g for g in gradient]


def hutchinson(
    base: BaseModel, attachment: Attachment, batch: list[Sequences], generator: torch.Generator
) -> list[Tensor]:
    """``u * H u`` for a normal probe ``u`` and the exact Hessian ``H`` of the mean loss.

    Its expectation is the diagonal of ``H`` (arXiv:2305.14342, algorithm 1).
    """
    parameters = list(attachment.parameters().values())
    targets = sum(map(count_targets, batch))
    probes = [torch.empty_like(p).normal_(generator=generator) for p in parameters]
    product = [torch.zeros_like(p) for p in parameters]
    for sequences in batch:
        logits, labels = supervised_logits(base, attachment, sequences)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / targets
        gradient = _gradient(loss, parameters, create_graph=True)
        along = torch.stack([(g * u).sum() for g, u in zip(gradient, probes, strict=True)]).sum()
        torch._foreach_add_(product, _gradient(along, parameters))
    return [u * h for u, h in zip(probes, product, strict=True)]


def supervised_logits(base: BaseModel, attachment: Attachment, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """``(targets, vocabulary)`` logits of the supervised tokens in float32 at least, and their ``(targets,)`` labels.

    Sequences stand side by side, filled up to the longest with tokens that no real one sees. Differentiable as often as
    one likes.
    """
    model: Any = base.model
    longest = max(len(ids) for ids, _ in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    real, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (tokens, supervised) in enumerate(sequences):
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
        real[row, : len(tokens)] = 1
        wanted[row, : len(tokens) - 1] = torch.from_numpy(supervised[1:])
    ids, real, wanted = ids.to(base.device), real.to(base.device), wanted.to(base.device)
    labels = ids.roll(-1, 1)[wanted]
    with sdpa_kernel(SDPBackend.MATH):
        if attachment.solo is not None:
            logits = attachment.solo(ids, real)[wanted]
            return logits.to(torch.promote_types(logits.dtype, torch.float32)), labels
        with _attached(model, attachment):
            embedded = model.get_input_embeddings()(ids)
            before = 0
            if attachment.prompt is not None:
                prompt = attachment.prompt().to(embedded.dtype)
                before = len(prompt)
                embedded = torch.cat([prompt.expand(len(ids), -1, -1), embedded], 1)
            hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            logits = model.get_output_embeddings()(hidden[:, before:][wanted])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    softcap = getattr(model.config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits, labels


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """``(rows,)`` labels, each from its row's distribution; any label where a row is not finite."""
    chances = torch.softmax(logits, -1).nan_to_num(nan=1.0)
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)


def _gradient(of: Tensor, parameters: list[nn.Parameter], create_graph: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(of, parameters, create_graph=create_graph, materialize_grads=True))


@contextlib.contextmanager
def _attached(model: nn.Module, attachment: Attachment) -> Iterator[None]:
    """Within, what goes through the modules that ``attachment`` adapts takes its paths."""
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys((*attachment.factors, *attachment.paths)):
            module, hooks = model.get_submodule(name), _Hooks(attachment, name)
            stack.callback(module.register_forward_pre_hook(hooks.before).remove)
            stack.callback(module.register_forward_hook(hooks.after).remove)
        yield


class _Hooks:
    """What one module is given and what it gives, as :class:`~lora_lab.methods.Attachment` says."""

    def __init__(self, attachment: Attachment, name: str) -> None:
        self.factor, self.path = attachment.factors.get(name), attachment.paths.get(name)
        self.came: Tensor | None = None

    def before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The module's input, changed by a path."""
        (x,) = inputs
        if self.path is None:
            return inputs
        self.came = x.reshape(-1, x.shape[-1])
        return (self.path.before(self.came).to(x.dtype).view(x.shape),)

    def after(self, module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """The module's output, with the low-rank update added and then changed by a path."""
        if self.factor is not None:
            A, B = self.factor.product()
            update = inputs[0].to(A.dtype) @ A.t() @ B.t() * self.factor.scaling
            y = (y + update if self.factor.magnitude is None else self._scaled(module, y, update)).to(y.dtype)
        if self.path is None or self.came is None:
            return y
        came, self.came = self.came, None
        return self.path.after(came, y.reshape(-1, y.shape[-1])).to(y.dtype).view(y.shape)

    def _scaled(self, module: nn.Module, y: Tensor, update: Tensor) -> Tensor:
        """DoRA: each row of the updated weight brought to its magnitude; the bias stays."""
        assert self.factor is not None and self.factor.magnitude is not None
        with torch.no_grad():
            A, B = self.factor.product()
            norms = (frozen_weight(module).to(A.dtype) + self.factor.scaling * B @ A).norm(dim=1)
        bias = getattr(module, "bias", None)
        bias = torch.zeros_like(norms) if bias is None else bias.to(norms.dtype)
        scaled: Tensor = self.factor.magnitude / norms * (y - bias + update) + bias
        return scaled
