"""Attention as a GPU's fused kernels hold it, for models that call torch's own attention while they are traced.

Tensors without data pretend to lie on a CPU, and torch chooses kernels by that: with a mask it would keep the scores of
every head. On CUDA its flash and memory-efficient kernels keep the inputs, the output and one number a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count


class FusedAttention(TorchFunctionMode):
    """Within, ``scaled_dot_product_attention`` holds what a fused kernel does; ``count`` is told its FLOPs."""

    def __init__(self, count: Callable[[int], None]) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace that one function; all else is as it is."""
        if func is functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Attention.apply(given["query"], given["key"], given["value"], self._count)
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """``(batch, heads, tokens, d)`` of the same, without values."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, count: Callable[[int], None]) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        ctx.count = count
        count(sdpa_flop_count(query.shape, _grouped(key, query), _grouped(value, query)))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, _, _ = ctx.saved_tensors
        shapes = query.shape, _grouped(key, query), _grouped(value, query)
        ctx.count(sdpa_backward_flop_count(grads[0].shape, *shapes))
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _grouped(kept: Tensor, query: Tensor) -> tuple[int, ...]:
    """The shape of keys or values as the products see it: one head a query's head."""
    return (*query.shape[:2], *kept.shape[2:])
