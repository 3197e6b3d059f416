"""A frozen product for all rows of a pack, with each lane's low-rank path added to its own rows.

What a lane adds is ``dropout(x) A' B' scaling`` (arXiv:2106.09685, eq. 3). Rows are selected, never multiplied by zero.
On a CPU float32 factors go through one kernel (:mod:`~lora_lab.packing.narrow`), all others through batched products
(:mod:`~lora_lab.packing.stacks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_lab.packing.frozen import Frozen
from lora_lab.packing.narrow import Narrow
from lora_lab.packing.stacks import Block


def linear(x: Tensor, frozen: Frozen, narrow: Narrow | None, blocks: Sequence[Block]) -> Tensor:
    """``(rows, out)`` of ``x (rows, in)``, the low-rank paths of all lanes included."""
    stacks = [stack for block in blocks for stack in block.stacks()]
    factors = narrow.factors if narrow is not None else []
    return _Linear.apply(x, frozen, narrow, blocks, *factors, *stacks)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """Saved are ``x``, the factors, the products with ``A``, and what dropout kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, frozen: Frozen, narrow: Narrow | None, blocks: Sequence[Block], *given: Tensor
    ) -> Tensor:
        x = x.contiguous()
        y = frozen.product(x)
        inner: list[Tensor] = [] if narrow is None else [*narrow.add(x, y)]
        stacks = given if narrow is None else given[len(narrow.factors) :]
        rest = iter(stacks)
        for block in blocks:
            A = next(rest)
            h = torch.bmm(_input(block, x), A.transpose(1, 2))
            for place, module in enumerate(block.modules):
                mine = _part(h, place, block)
                block.rows.add(y, torch.bmm(mine, next(rest).transpose(1, 2)), frozen.columns[module])
            inner.append(h)
        ctx.frozen, ctx.narrow, ctx.blocks = frozen, narrow, blocks
        if given:
            ctx.save_for_backward(x, *stacks, *inner)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dy, narrow, blocks, frozen = grads[0].contiguous(), ctx.narrow, ctx.blocks, ctx.frozen
        dx = frozen.back(dy) if ctx.needs_input_grad[0] else None
        out: list[Tensor] = []
        if saved := ctx.saved_tensors:  # once: what was not kept is computed again for it
            count = len(blocks) + 2 * (narrow is not None)
            x, *rest = saved
            stacks, inner = iter(rest[: len(rest) - count]), rest[len(rest) - count :]
            if narrow is not None:
                out += narrow.back(x, dy, dx, inner.pop(0), inner.pop(0))
            for block, h in zip(blocks, inner, strict=True):
                out += _back(block, h, x, dy, dx, stacks, frozen)
        return dx, None, None, None, *out


def _back(
    block: Block, h: Tensor, x: Tensor, dy: Tensor, dx: Tensor | None, stacks: Any, frozen: Frozen
) -> list[Tensor]:
    """The gradients of a block's stacks; its part of the input's is added to ``dx``."""
    A = next(stacks)
    dBs, dhs = [], []
    for place, module in enumerate(block.modules):
        a, b = frozen.columns[module]
        g = block.rows.of(dy[:, a:b]).to(block.dtype)
        dBs.append(torch.bmm(g.transpose(1, 2), _part(h, place, block)))
        dhs.append(torch.bmm(g, next(stacks)))
    dh = dhs[0] if len(dhs) == 1 else torch.cat(dhs, dim=2)
    if dx is not None:
        block.rows.add(dx, block.dropped(torch.bmm(dh, A), mine=True), (0, dx.shape[1]))
    return [torch.bmm(dh.transpose(1, 2), _input(block, x)), *dBs]


def _input(block: Block, x: Tensor) -> Tensor:
    return block.dropped(block.rows.of(x).to(block.dtype))


def _part(h: Tensor, place: int, block: Block) -> Tensor:
    return h[:, :, place * block.rank : (place + 1) * block.rank]
