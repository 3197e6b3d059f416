"""Causal self-attention with rotary positions from one ``(rows, query + key + value)`` tensor.

Sequences are attended to in buckets of like length. Up to some hundred tokens by matrix products around a softmax that
looks at no later position, whose weights are kept for the backward or, where they are larger than what they are made
of, made again there; longer ones by PyTorch's flash attention. The rotation, the bucket's order and the way back to
rows are one pass each. Statistics are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_lab.packing import native
from lora_lab.packing.attention import EAGER_LENGTH, attend
from lora_lab.packing.layout import Bucket, Layout

PRODUCTS_LENGTH = 640
"""Up to here matrix products, the weights made twice, are faster than PyTorch's flash attention: 1.8 times at 256
tokens, as fast at 768 (SmolLM2's heads, two cores with AVX512-bf16; most of the difference is flash's backward)."""


@dataclass(frozen=True, eq=False)
class Heads:
    """How rows of queries, keys and values divide: ``kv`` key-value heads of ``groups`` query heads each, ``d`` wide.

    ``window``: how many positions a token sees, itself included (``None``: all before it). ``cosine`` and ``sine`` are
    the ``(positions, d)`` rotary tables, their halves equal.
    """

    kv: int
    groups: int
    d: int
    scaling: float
    window: int | None
    cosine: Tensor
    sine: Tensor


def self_attention(qkv: Tensor, heads: Heads, layout: Layout) -> Tensor:
    """``(rows, heads d)`` of ``qkv (rows, (heads + 2 kv) d)``."""
    if layout.attention is not None:
        return layout.attention(*_rotated(qkv, heads, layout), heads.scaling, None, heads.window)
    if native.usable(qkv, layout.kernels):
        return _SelfAttention.apply(qkv, heads, layout)  # type: ignore[no-any-return]
    return attend(*_rotated(qkv, heads, layout), layout, heads.scaling, None, heads.window)


def _rotated(qkv: Tensor, heads: Heads, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """``(heads, rows, d)`` queries and ``(kv, rows, d)`` keys and values; without a gradient where kernels serve."""
    h, kv, d = heads.kv * heads.groups, heads.kv, heads.d
    if native.usable(qkv, layout.kernels) and not qkv.requires_grad:
        q, k, v = (qkv.new_empty(n, len(qkv), d) for n in (h, kv, kv))
        rows = torch.arange(len(qkv), device=qkv.device)
        sizes = (1, len(qkv), kv, heads.groups, d)
        native.call("split_rotate", qkv.contiguous(), rows, layout.positions, *_tables(heads), q, k, v, *sizes)
        return q, k, v
    q, k, v = qkv.view(len(qkv), -1, d).transpose(0, 1).split([h, kv, kv])
    positions = layout.positions[0]
    cosine, sine = heads.cosine[positions].to(qkv.dtype), heads.sine[positions].to(qkv.dtype)
    q, k = (x * cosine + torch.cat((-x[..., d // 2 :], x[..., : d // 2]), dim=-1) * sine for x in (q, k))
    return q, k, v


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: Heads, layout: Layout) -> Tensor:
        qkv = qkv.contiguous()
        out = qkv.new_empty(len(qkv), heads.kv * heads.groups * heads.d)
        saved: list[Tensor] = []
        for bucket in layout.buckets:
            saved += _bucket(qkv, out, heads, layout, bucket)
        ctx.heads, ctx.layout = heads, layout
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        heads, layout, dout = ctx.heads, ctx.layout, grads[0].contiguous()
        dqkv = dout.new_empty(len(dout), (heads.groups + 2) * heads.kv * heads.d)
        saved = list(ctx.saved_tensors)
        for bucket in layout.buckets:
            count = 5 if not _by_products(bucket, heads) else 4 if _keeps_weights(bucket) else 3
            _bucket_backward(dout, dqkv, saved[:count], heads, layout, bucket)
            del saved[:count]
        return dqkv, None, None


def _by_products(bucket: Bucket, heads: Heads) -> bool:
    length = bucket.rows.shape[1]
    return length <= PRODUCTS_LENGTH or (heads.window is not None and heads.window < length)


def _keeps_weights(bucket: Bucket) -> bool:
    return bucket.rows.shape[1] <= EAGER_LENGTH


def _weights(q: Tensor, k: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    """``(sequences kv, groups t, t)``: how much each position looks at each."""
    s, t, kv, groups, _ = _sizes(bucket, heads)
    weights = torch.bmm(q, k.transpose(1, 2))
    native.call("causal_softmax", weights, s * kv * groups, t, heads.window or t, heads.scaling)
    return weights


def _sizes(bucket: Bucket, heads: Heads) -> tuple[int, int, int, int, int]:
    return (*bucket.index.shape, heads.kv, heads.groups, heads.d)


def _tables(heads: Heads) -> tuple[Tensor, Tensor]:
    half = heads.d // 2
    return heads.cosine[:, :half].contiguous(), heads.sine[:, :half].contiguous()


def _bucket(qkv: Tensor, out: Tensor, heads: Heads, layout: Layout, bucket: Bucket) -> list[Tensor]:
    s, t, kv, groups, d = _sizes(bucket, heads)
    q, k, v = (qkv.new_empty(s * kv, n * t, d) for n in (groups, 1, 1))
    native.call("split_rotate", qkv, bucket.index, layout.positions, *_tables(heads), q, k, v, s, t, kv, groups, d)
    if _by_products(bucket, heads):
        weights = _weights(q, k, bucket, heads)
        o, saved = torch.bmm(weights, v), [q, k, v, weights][: 4 if _keeps_weights(bucket) else 3]
    else:
        wide = [x.view(s, kv, 1, t, d).expand(s, kv, groups, t, d).reshape(s, kv * groups, t, d) for x in (k, v)]
        o, normalisers = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q.view(s, kv * groups, t, d), *wide, 0.0, True, scale=heads.scaling
        )
        o = o.contiguous()
        saved = [q, k, v, o, normalisers]
    native.call("join_heads", o, bucket.index, out, s, t, kv * groups, d, 0)
    return saved


def _bucket_backward(
    dout: Tensor, dqkv: Tensor, saved: list[Tensor], heads: Heads, layout: Layout, bucket: Bucket
) -> None:
    s, t, kv, groups, d = _sizes(bucket, heads)
    q, k, v, *rest = saved
    do = torch.empty_like(q)
    native.call("join_heads", do, bucket.index, dout, s, t, kv * groups, d, 1)
    if _by_products(bucket, heads):
        weights = rest[0] if rest else _weights(q, k, bucket, heads)
        dv = torch.bmm(weights.transpose(1, 2), do)
        scores = torch.bmm(do, v.transpose(1, 2))
        native.call("causal_softmax_backward", weights, scores, s * kv * groups, t, heads.window or t, heads.scaling)
        dq, dk = torch.bmm(scores, k), torch.bmm(scores.transpose(1, 2), q)
    else:
        o, normalisers = rest
        shape = (s, kv * groups, t, d)
        wide = [x.view(s, kv, 1, t, d).expand(s, kv, groups, t, d).reshape(shape) for x in (k, v)]
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            do.view(shape), q.view(shape), *wide, o, normalisers, 0.0, True, scale=heads.scaling
        )
        dq = dq.contiguous()
        dk, dv = (x.view(s, kv, groups, t, d).sum(2) for x in (dk, dv))
    native.call(
        "split_rotate_backward",
        *(dq, dk.contiguous(), dv.contiguous(), bucket.index, layout.positions, *_tables(heads), dqkv),
        *(s, t, kv, groups, d),
    )
