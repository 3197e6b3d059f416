"""Lanes whose low-rank products run as one batched product.

At a module (or several that read the same input) lanes are sorted into blocks of like rank and like number of rows.
Ranks are padded with zeros to the block's power of two, rows with rows of zeros: nothing of one lane is ever
multiplied with another's, and a lane that holds NaN stays alone with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lora_lab.methods import Attachment, LowRank
from lora_lab.packing import native
from lora_lab.packing.dropout import dropout, seed_of
from lora_lab.packing.narrow import Narrow, Stretch
from lora_lab.packing.phases import phase

Columns = Sequence[tuple[int, int]]
"""First and past-the-last output column of each module."""
LEAST_RANK = 16
"""Ranks below are padded to it: a narrower product takes as long."""
ROW_WASTE = 0.25
"""Padding that a block may hold, as a share of its rows, before a new one is begun."""


def padded(rank: int) -> int:
    """What ``rank`` is padded to: a power of two."""
    return max(LEAST_RANK, 1 << (rank - 1).bit_length())


@dataclass(frozen=True, eq=False)
class Share:
    """The rows ``start … stop`` of a forward, and what is added to them.

    ``attachment`` is ``None`` for the base model itself. ``noise`` seeds dropout; without it (evaluation, generation)
    there is none.
    """

    attachment: Attachment | None
    start: int
    stop: int
    noise: int | None = None

    @property
    def rows(self) -> int:
        """How many rows they are."""
        return self.stop - self.start

    def carries(self, name: str) -> bool:
        """Whether the lane has a path at module ``name``."""
        return self.attachment is not None and (name in self.attachment.factors or name in self.attachment.paths)

    @property
    def dropout(self) -> float:
        """The probability at work in this forward."""
        return self.attachment.dropout if self.attachment is not None and self.noise is not None else 0.0


class BlockRows:
    """The rows of a block's lanes as ``(lanes, longest, d)``: a view where they lie so, else gathered."""

    def __init__(self, shares: Sequence[Share], device: torch.device, kernels: str) -> None:
        self.lanes, self.longest = len(shares), max(share.rows for share in shares)
        self.kernels, self.device = kernels, device
        self._shares = shares
        adjacent = all(a.stop == b.start for a, b in itertools.pairwise(shares))
        self.span = (
            (shares[0].start, shares[-1].stop)
            if adjacent and all(share.rows == self.longest for share in shares)
            else None
        )

    @cached_property
    def _index(self) -> Tensor:
        places = torch.arange(self.longest)
        rows = [torch.where(places < share.rows, places + share.start, -1) for share in self._shares]
        return torch.cat(rows).to(self.device)

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        """Flat positions in the block that are rows, and which."""
        positions = [torch.arange(share.rows) + i * self.longest for i, share in enumerate(self._shares)]
        owners = [torch.arange(share.start, share.stop) for share in self._shares]
        return torch.cat(positions).to(self.device), torch.cat(owners).to(self.device)

    def of(self, x: Tensor) -> Tensor:
        """``(lanes, longest, d)`` of ``x (rows, d)``; rows past a lane's end are zeros. Contiguous."""
        d = x.shape[1]
        if self.span is not None:
            return x[self.span[0] : self.span[1]].contiguous().view(self.lanes, self.longest, d)
        out = x.new_empty(self.lanes, self.longest, d)
        if native.usable(x, self.kernels) and x.is_contiguous():
            native.call("gather", x, self._index, out, self.lanes * self.longest, d)
        else:
            positions, owners = self._real
            out.zero_().view(-1, d).index_copy_(0, positions, x.index_select(0, owners))
        return out

    def add(self, y: Tensor, blocks: Tensor, columns: tuple[int, int]) -> None:
        """Add ``blocks (lanes, longest, d)`` to the columns ``a … b`` of ``y (rows, width)``, in place."""
        a, b = columns
        if self.span is not None:
            y[self.span[0] : self.span[1], a:b].add_(blocks.view(-1, b - a))
        elif native.usable(y, self.kernels) and blocks.dtype == y.dtype:
            native.call(
                "scatter_add", y, self._index, blocks.contiguous(), self.lanes * self.longest, b - a, y.shape[1], a
            )
        else:
            positions, owners = self._real
            y[:, a:b].index_add_(0, owners, blocks.view(-1, b - a).index_select(0, positions).to(y.dtype))


@dataclass(frozen=True, eq=False)
class Product:
    """A lane's update ``scaling B A`` of one module: ``A (r, in)``, ``B (out, r)``."""

    A: Tensor
    B: Tensor
    scaling: float

    @staticmethod
    def of(factor: LowRank) -> Product:
        """What ``factor`` multiplies."""
        return Product(*factor.product(), factor.scaling)


@dataclass(frozen=True, eq=False)
class Block:
    """Lanes in one batched product at ``modules`` (indices among those that share an input).

    ``noises`` are the dropout probability and seed of each lane, of blocks whose lanes have any.
    """

    rows: BlockRows
    factors: tuple[tuple[Product, ...], ...]
    modules: tuple[int, ...]
    rank: int
    dtype: torch.dtype
    noises: tuple[tuple[float, int], ...] = ()

    def dropped(self, x: Tensor, *, mine: bool = False) -> Tensor:
        """``x (lanes, longest, in)`` after each lane's dropout; in place where ``x`` is ``mine`` to change."""
        if not self.noises:
            return x
        out = x if mine else torch.empty_like(x)
        for i, (p, seed) in enumerate(self.noises):
            dropout(x[i], p, seed, self.rows.kernels, out[i])
        return out

    def stacks(self) -> tuple[Tensor, ...]:
        """``(lanes, modules * rank, in)`` of A and, for each module, ``(lanes, out, rank)`` of scaled B."""
        return _Stack.apply(self, *(f for lane in self.factors for low in lane for f in (low.A, low.B)))  # type: ignore[no-any-return]


class _Stack(torch.autograd.Function):
    """Factors of several lanes side by side in the dtype of the products, ``B`` scaled."""

    @staticmethod
    def forward(ctx: Any, block: Block, *factors: Tensor) -> tuple[Tensor, ...]:
        ctx.block = block
        lanes, modules, rank = len(block.factors), len(block.modules), block.rank
        first, device = block.factors[0], factors[0].device
        new = torch.zeros if any(f.A.shape[0] < rank for lane in block.factors for f in lane) else torch.empty
        A = new(lanes, modules, rank, first[0].A.shape[1], dtype=block.dtype, device=device)
        Bs = [new(lanes, f.B.shape[0], rank, dtype=block.dtype, device=device) for f in first]
        targets = [_top(A, i, m, f) for i, lane in enumerate(block.factors) for m, f in enumerate(lane)]
        targets += [_left(Bs[m], i, f) for i, lane in enumerate(block.factors) for m, f in enumerate(lane)]
        torch._foreach_copy_(targets, [*factors[::2], *factors[1::2]])
        for m, B in enumerate(Bs):
            scales = [lane[m].scaling for lane in block.factors]
            B.mul_(scales[0] if len(set(scales)) == 1 else _column(scales, B))
        return A.view(lanes, modules * rank, -1), *Bs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        block: Block = ctx.block
        lanes, modules = len(block.factors), len(block.modules)
        wide = block.factors[0][0].A.dtype
        with phase("gradients"):
            dA = grads[0].to(wide).view(lanes, modules, block.rank, -1)
            dBs = [grad.to(wide) for grad in grads[1:]]
        for m, dB in enumerate(dBs):
            scales = [lane[m].scaling for lane in block.factors]
            dB.mul_(scales[0] if len(set(scales)) == 1 else _column(scales, dB))
        out: list[Tensor | None] = [None]
        for i, lane in enumerate(block.factors):
            for m, f in enumerate(lane):
                out += [_top(dA, i, m, f), _left(dBs[m], i, f)]
        return tuple(out)


def _top(A: Tensor, lane: int, module: int, factor: Product) -> Tensor:
    return A[lane, module, : factor.A.shape[0]]


def _left(B: Tensor, lane: int, factor: Product) -> Tensor:
    return B[lane, :, : factor.B.shape[1]]


def _column(scales: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(scales, dtype=like.dtype, device=like.device).view(-1, 1, 1)


@dataclass(frozen=True)
class _Kind:
    """What lanes of one block have in common."""

    modules: tuple[int, ...]
    rank: int
    dtype: torch.dtype
    dropout: bool


class Blocks:
    """The blocks of one forward, made when a module is reached."""

    def __init__(self, shares: Sequence[Share], device: torch.device, kernels: str) -> None:
        self.shares, self.device, self.kernels = shares, device, kernels
        self._rows: dict[tuple[int, ...], BlockRows] = {}

    def at(self, names: Sequence[str], columns: Columns, x: Tensor) -> tuple[Narrow | None, list[Block]]:
        """How the lanes go at modules ``names``, which read the same input ``x`` and write to ``columns``."""
        kinds: dict[_Kind, list[int]] = {}
        stretches: list[Stretch] = []
        kernels = native.usable(x, self.kernels)
        for i, share in enumerate(self.shares):
            if share.attachment is None or share.rows == 0:
                continue
            factors = share.attachment.factors
            present = tuple(m for m, name in enumerate(names) if name in factors)
            if kernels and present and factors[names[present[0]]].A.dtype == torch.float32:
                stretches += [self._stretch(share, names[m], columns[m][0]) for m in present]
                continue
            # Dropout draws for each module anew, so that modules do not share an input then.
            for modules in [(m,) for m in present] if share.dropout else [present] if present else []:
                rank = padded(max(factors[names[m]].rank for m in modules))
                wide = factors[names[modules[0]]].A.dtype
                kind = _Kind(modules, rank, wide, bool(share.dropout))
                kinds.setdefault(kind, []).append(i)
        blocks = [self._block(names, kind, alike) for kind, lanes in kinds.items() for alike in self._alike(lanes)]
        return Narrow(stretches) if stretches else None, blocks

    def _stretch(self, share: Share, name: str, column: int) -> Stretch:
        assert share.attachment is not None
        seed = seed_of(share.noise, name) if share.dropout and share.noise is not None else 0
        factor = share.attachment.factors[name]
        return Stretch(*factor.product(), factor.scaling, share.start, share.rows, column, share.dropout, seed)

    def _alike(self, lanes: list[int]) -> list[list[int]]:
        """Lanes with like numbers of rows together, in the order of their rows where that wastes nothing."""
        if len({self.shares[i].rows for i in lanes}) == 1:
            return [lanes]
        parts: list[list[int]] = []
        for i in sorted(lanes, key=lambda i: -self.shares[i].rows):
            rows = self.shares[i].rows
            if parts:
                longest = self.shares[parts[-1][0]].rows
                used = sum(self.shares[j].rows for j in parts[-1]) + rows
                if longest * (len(parts[-1]) + 1) - used <= ROW_WASTE * used:
                    parts[-1].append(i)
                    continue
            parts.append([i])
        return parts

    def _block(self, names: Sequence[str], kind: _Kind, lanes: list[int]) -> Block:
        shares = [self.shares[i] for i in lanes]
        key = tuple(lanes)
        if key not in self._rows:
            self._rows[key] = BlockRows(shares, self.device, self.kernels)
        factors, noises = [], []
        for share in shares:
            assert share.attachment is not None
            factors.append(tuple(Product.of(share.attachment.factors[names[m]]) for m in kind.modules))
            if kind.dropout:
                assert share.noise is not None
                noises.append((share.dropout, seed_of(share.noise, names[kind.modules[0]])))
        return Block(self._rows[key], tuple(factors), kind.modules, kind.rank, kind.dtype, tuple(noises))
