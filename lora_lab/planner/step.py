"""One optimizer step of one lane on tensors without data: what it allocates, when, and how much it computes.

The step is the training loop's: the frozen base on the lane's rows, low-rank paths on its targets, attention
over each sequence, logits only where a label is, cross-entropy a block of rows at a time, backward, the real
optimizer. It is the model's own code that runs, so an architecture needs no formula of its own.

The batch is the largest there can be: every sequence ``length`` tokens long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lora_lab.models import load_meta, role_modules, total_parameters
from lora_lab.optim.optimizers import build
from lora_lab.planner.adapters import mount, parameters_by_role, targets
from lora_lab.planner.ledger import Crest, Ledger
from lora_lab.spec import MethodSpec, ModelSpec, OptimizerSpec, RunSpec

PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "workspace")
"""What a peak is made of. ``activations`` are what the forward keeps for the backward, their gradients and casts;
``logits`` those and theirs; ``workspace`` is what one lane after the other makes for a moment."""

SHARED = ("weights", "workspace")
"""Parts that a pack holds once, however many lanes it has; of the others each lane has its own."""

_ATTENTION = "lora_lab_traced"
_EAGER_LENGTH = 128  # up to here a CPU computes attention by plain matrix products; so does the training loop
_CROSS_ENTROPY_ROWS = 64


@dataclass(frozen=True)
class Shape:
    """All that the memory of a step depends on. Equal shapes are traced once.

    ``rows`` sequences of ``length`` tokens, ``supervised`` of them targets, make one forward;
    ``accumulates`` says that a step has several. ``device`` is ``cpu`` or ``cuda``.
    """

    model: ModelSpec
    method: MethodSpec
    optimizer: OptimizerSpec
    rows: int
    length: int
    supervised: int
    accumulates: bool
    device: str

    @staticmethod
    def of(spec: RunSpec, device: str, length: int | None = None, supervised: int | None = None) -> Shape:
        """The shape of a run's largest step; ``length`` and ``supervised`` tokens per sequence where known."""
        length = min(length or spec.data.max_length, spec.data.max_length)
        method, optimizer = spec.method, spec.optimizer
        return Shape(
            model=spec.model,
            method=MethodSpec(
                method.name,
                r=method.r,
                alpha=1.0,
                roles=method.roles,
                layers=method.layers,
                dropout=0.5 if method.dropout else 0.0,
            ),
            optimizer=OptimizerSpec(optimizer.name, momentum=0.5 if optimizer.momentum else 0.0),
            rows=spec.budget.micro,
            length=length,
            supervised=max(1, min(length - 1, supervised or length)),
            accumulates=spec.budget.micro < spec.budget.batch_size,
            device=device,
        )

    def shrunk(self, **changes: Any) -> Shape:
        """This shape with other ``rows`` or ``length``; the supervised share stays."""
        new = replace(self, **changes)
        return replace(new, supervised=max(1, min(new.length - 1, self.supervised * new.length // self.length)))


@dataclass(frozen=True)
class Trace:
    """A traced step of one lane; ``flops`` are those of one forward and backward.

    ``crests`` are the moments that can be the peak for some number of lanes.
    """

    trainable_parameters: int
    total_parameters: int
    by_role: tuple[tuple[str, int], ...]
    crests: tuple[Crest, ...]
    flops: int

    def parts(self, lanes: int = 1) -> dict[str, int]:
        """Bytes by part at the peak of a pack of so many such lanes."""
        crest = max(self.crests, key=lambda c: c.shared + lanes * c.own)
        return {part: crest.parts.get(part, 0) * (1 if part in SHARED else lanes) for part in PARTS}

    def peak(self, lanes: int = 1) -> int:
        """Bytes at the peak of a pack of so many such lanes."""
        return max(c.shared + lanes * c.own for c in self.crests)

    def lanes_in(self, budget: int) -> int:
        """How many such lanes stay within ``budget`` bytes; 0 when not even one does."""
        if self.peak(1) > budget:
            return 0
        return min((budget - c.shared) // c.own for c in self.crests if c.own)


@lru_cache(maxsize=128)
def trace(shape: Shape) -> Trace:
    """Trace one step of ``shape``; some seconds for a 7B model, no memory to speak of.

    Raises:
        ModelError, MethodError: the model's configuration cannot be read, or lacks a role that is asked for.
    """
    model = load_meta(shape.model)
    roles = role_modules(model, shape.model) if shape.method.mask else {}
    found = targets(model, roles, shape.method, shape.model.name)
    by_role = parameters_by_role(found, shape.method)
    total = total_parameters(model)
    ledger = Ledger(SHARED)
    with FakeTensorMode(allow_non_fake_inputs=True), _attention(model, shape):
        model.to_empty(device="cpu")  # where tensors without data pretend to be; on CUDA as much is allocated
        model.requires_grad_(False)
        for tensor in (*model.parameters(), *model.buffers()):
            ledger.book(tensor, "weights")
        with ledger:
            parameters = mount(found, shape.method, ledger)
            for parameter in parameters:
                ledger.book(parameter, "adapters")
            _train(model, shape, ledger, parameters)
    return Trace(sum(by_role.values()), total, tuple(by_role.items()), tuple(ledger.crests), ledger.flops)


def _train(model: PreTrainedModel, shape: Shape, ledger: Ledger, parameters: list[nn.Parameter]) -> None:
    """A forward, backward and update that find the optimizer's state there, as all but the first step do."""
    if not parameters:
        with ledger.phase("activations"), torch.no_grad():
            _loss(model, shape, ledger)
        return
    optimizer = build(shape.optimizer, parameters)
    with ledger.phase("gradients"):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
    with ledger.phase("optimizer"):
        optimizer.step()
    if not shape.accumulates:
        optimizer.zero_grad(set_to_none=True)
    with ledger.phase("activations"):
        loss = _loss(model, shape, ledger)
        loss.backward()
        del loss
    with ledger.phase("workspace"):
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def _loss(model: PreTrainedModel, shape: Shape, ledger: Ledger) -> Tensor:
    ids = torch.empty(shape.rows, shape.length, dtype=torch.int64)
    positions = torch.arange(shape.length).unsqueeze(0)
    hidden = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    labels = torch.empty(shape.rows * shape.supervised, dtype=torch.int64)
    hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, labels)
    with ledger.phase("logits"):
        logits = model.get_output_embeddings()(hidden)
        softcap = getattr(model.config, "final_logit_softcapping", None)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
    losses: Tensor = _CrossEntropy.apply(logits, labels, ledger)
    return losses.sum()


class _CrossEntropy(torch.autograd.Function):
    """Row-wise cross-entropy that widens a block of rows at a time and keeps only the logits themselves."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ledger: Ledger) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        normalisers, losses = (logits.new_empty(len(logits), dtype=wide) for _ in range(2))
        with ledger.phase("workspace"):
            for rows in _blocks(len(logits)):
                block = logits[rows].to(wide)
                normalisers[rows] = torch.logsumexp(block, -1)
                losses[rows] = normalisers[rows] - block.gather(1, labels[rows, None]).squeeze(1)
        ctx.save_for_backward(logits, labels, normalisers)
        ctx.ledger = ledger
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, normalisers = ctx.saved_tensors
        with ctx.ledger.phase("logits"):
            out = torch.empty_like(logits)
        with ctx.ledger.phase("workspace"):
            for rows in _blocks(len(logits)):
                block = (logits[rows].to(normalisers.dtype) - normalisers[rows, None]).exp_()
                block[torch.arange(len(block)), labels[rows]] -= 1.0
                out[rows] = block.mul_(grads[0][rows, None])
        return out, None, None


def _blocks(rows: int) -> list[slice]:
    return [slice(a, a + _CROSS_ENTROPY_ROWS) for a in range(0, rows, _CROSS_ENTROPY_ROWS)]


@contextlib.contextmanager
def _attention(model: PreTrainedModel, shape: Shape) -> Iterator[None]:
    """Within, ``model`` attends as the training loop does."""
    own = {id(c): (c, c._attn_implementation) for c in _configs(model)}

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any, **options: Any) -> Any:
        return _attend(q, k, v, shape.device, **options), None

    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, attend)
    try:
        for config, _ in own.values():
            config._attn_implementation = _ATTENTION
        yield
    finally:
        for config, before in own.values():
            config._attn_implementation = before


def _configs(model: PreTrainedModel) -> list[Any]:
    configs = [getattr(module, "config", None) for module in model.modules()]
    return [config for config in configs if hasattr(config, "_attn_implementation")]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    device: str,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> Tensor:
    """Causal attention of ``q (s, h, t, d)`` over ``k, v (s, h_kv, t, d)``, as ``(s, t, h, d)``."""
    s, h, t, d = q.shape
    scaling = d**-0.5 if scaling is None else scaling
    kv = k.shape[1]
    windowed = sliding_window is not None and sliding_window < t
    if softcap is None and not windowed and (device == "cuda" or t > _EAGER_LENGTH):
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=h > kv)
        return out.transpose(1, 2)
    scores = torch.matmul(q.reshape(s, kv, h // kv * t, d), k.transpose(2, 3)).mul_(scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    hidden = torch.ones(t, t, dtype=torch.bool).triu_(1)
    scores = scores.view(s, kv, h // kv, t, t).masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
    return torch.matmul(weights.view(s, kv, h // kv * t, t), v).view(s, h, t, d).transpose(1, 2)
