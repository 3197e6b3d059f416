"""Attention over a packed, padding-free layout, for every transformers model that looks its attention up.

The model is told to use the implementation :data:`NAME`; it then hands over queries, keys and values of all
rows. Rows are gathered into buckets of sequences, attended causally, and scattered back. Lanes never mix:
a sequence attends to itself alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lora_lab.packing.layout import Bucket, Layout

NAME = "lora_lab_packed"
EAGER_LENGTH = 128
"""Up to this many tokens plain matrix products beat SDPA on a CPU, whose backward is slow."""

_layout: ContextVar[Layout] = ContextVar("layout")


@contextlib.contextmanager
def packed(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """Within, ``model``'s attention follows ``layout``; the model's own attention comes back after."""
    own = model.config._attn_implementation
    token = _layout.set(layout)
    _switch(model, NAME)
    try:
        yield
    finally:
        _switch(model, own)
        _layout.reset(token)


def _switch(model: PreTrainedModel, name: str) -> None:
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = name
    model.config._attn_implementation = name


class _Gather(torch.autograd.Function):
    """Rows ``(heads, rows, d)`` to a bucket ``(sequences, heads, length, d)``.

    The repeats that fill a short sequence receive no gradient that matters (no real position attends to
    them, and their own outputs are dropped), so the backward is a plain scatter of the real positions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bucket: Bucket) -> Tensor:
        ctx.bucket, ctx.rows = bucket, x.shape[1]
        sequences, length = bucket.rows.shape
        out = x.index_select(1, bucket.rows.flatten())
        return out.view(x.shape[0], sequences, length, x.shape[2]).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].transpose(0, 1)
        heads, sequences, length, d = grad.shape
        flat = grad.reshape(heads, sequences * length, d)
        out = flat.new_zeros(heads, ctx.rows, d)
        out.index_copy_(1, ctx.bucket.owners, flat.index_select(1, ctx.bucket.real))
        return out, None


class _Pick(torch.autograd.Function):
    """``x[index]`` along the first axis for an ``index`` without repeats: the backward is a scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.rows = index, x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out = grads[0].new_zeros(ctx.rows, *grads[0].shape[1:])
        return out.index_copy_(0, ctx.index, grads[0]), None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, softcap: float | None, window: int | None, cuda: bool
) -> Tensor:
    """Causal attention of right-padded ``q (s, h, t, d)`` over ``k, v (s, h_kv, t, d)``; ``(s, h, t, d)``."""
    s, h, t, d = q.shape
    groups = h // k.shape[1]
    windowed = window is not None and window < t
    if softcap is None and not windowed and (cuda or t > EAGER_LENGTH):
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=groups > 1)
    q = q.reshape(s, h // groups, groups * t, d)
    scores = torch.matmul(q, k.transpose(2, 3)).mul_(scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    i = torch.arange(t, device=q.device)
    hidden = i[None, :] > i[:, None]
    if windowed:
        assert window is not None
        hidden |= i[None, :] <= i[:, None] - window
    scores = scores.view(s, h // groups, groups, t, t).masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
    return torch.matmul(weights.view(s, h // groups, groups * t, t), v).view(s, h, t, d)


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: ``(1, heads, rows, d)`` each, to ``(1, rows, heads, d)``."""
    q, k, v = query[0], key[0], value[0]
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend(q, k, v, _layout.get(), scaling, softcap, sliding_window)
    return out.view(1, len(out), q.shape[0], -1), None


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scaling: float, softcap: float | None, window: int | None
) -> Tensor:
    """Causal attention within each sequence: ``(heads, rows, d)``, rotated, to ``(rows, heads d)``."""
    if layout.attention is not None:
        return layout.attention(q, k, v, scaling, softcap, window)
    parts = []
    for bucket in layout.buckets:
        bq, bk, bv = (_Gather.apply(x, bucket) for x in (q, k, v))
        out = _attend(bq, bk, bv, scaling, softcap, window, layout.kernels == "cuda")
        flat = out.transpose(1, 2).reshape(-1, out.shape[1], out.shape[3])
        parts.append(_Pick.apply(flat, bucket.real))
    return _Pick.apply(torch.cat(parts), layout.restore).flatten(1)  # type: ignore[no-any-return]


ALL_ATTENTION_FUNCTIONS.register(NAME, _packed_attention)
