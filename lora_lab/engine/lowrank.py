"""Every lane's low-rank path on one resident base model.

A frozen linear module computes its product for all rows of a pack at once; each lane then adds
``scaling * B A dropout(x)`` to its own rows. Rows are selected, never multiplied by zero, so a lane that
holds NaN stays alone with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.methods import Attachment
from lora_lab.models import BaseModel


@dataclass(frozen=True, eq=False)
class Share:
    """The rows ``start … stop`` of a forward, and what is added to them.

    ``attachment`` is ``None`` for the base model itself. ``generator`` draws dropout masks; without one
    (evaluation, generation) there is no dropout.
    """

    attachment: Attachment | None
    start: int
    stop: int
    generator: torch.Generator | None = None


class _AddLowRank(torch.autograd.Function):
    """``y (…, out)`` with each lane's low-rank product of ``x (…, in)`` added to its rows, in place.

    Saves, beside ``x`` which all lanes (and q, k, v) share, only each lane's ``(rows, r)`` product and its
    dropout mask. Low-rank products are computed in the adapters' dtype, as stock PEFT does.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, lanes: list[tuple[int, int, float, Tensor | None]], *factors: Tensor
    ) -> Tensor:
        ctx.lanes = lanes
        flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        inner = []
        for i, (start, stop, scaling, mask) in enumerate(lanes):
            A, B = factors[2 * i], factors[2 * i + 1]
            rows = flat_x[start:stop].to(A.dtype)
            if mask is not None:
                rows = rows * mask
            h = rows @ A.t()
            flat_y[start:stop] = torch.addmm(flat_y[start:stop].to(A.dtype), h, B.t(), alpha=scaling)
            inner.append(h)
        ctx.save_for_backward(x, *factors, *inner)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        x, *rest = ctx.saved_tensors
        lanes = ctx.lanes
        factors, inner = rest[: 2 * len(lanes)], rest[2 * len(lanes) :]
        wants_x = ctx.needs_input_grad[1]
        flat_x = x.reshape(-1, x.shape[-1])
        dx = torch.zeros_like(flat_x) if wants_x else None
        out: list[Tensor | None] = []
        for i, (start, stop, scaling, mask) in enumerate(lanes):
            A, B, h = factors[2 * i], factors[2 * i + 1], inner[i]
            g = dy[start:stop].to(A.dtype)
            dh = (g @ B).mul_(scaling)
            rows = flat_x[start:stop].to(A.dtype)
            if mask is not None:
                rows = rows * mask
            out += [dh.t() @ rows, (g.t() @ h).mul_(scaling)]
            if dx is not None:
                back = dh @ A
                dx[start:stop] = back if mask is None else back.mul_(mask)
        return grads[0], None if dx is None else dx.view(x.shape), None, *out


class Mount:
    """A base model with the low-rank paths of whichever lanes a forward names.

    Only one forward at a time: use :meth:`shares` around it. The base's parameters and module tree stay as
    they are; modules that carry a path get a forward of their own while this object is mounted.
    """

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self._shares: Sequence[Share] = ()
        self._mounted: dict[str, nn.Module] = {}

    def mount(self, attachment: Attachment) -> None:
        """Make the modules that ``attachment`` targets ready for lanes."""
        for name in attachment.factors:
            if name not in self._mounted:
                module = self.base.model.get_submodule(name)
                self._mounted[name] = module
                module.forward = _PackedForward(self, name, module)

    def unmount(self) -> None:
        """Give every module its own forward back."""
        for module in self._mounted.values():
            del module.forward
        self._mounted.clear()

    @contextlib.contextmanager
    def shares(self, shares: Sequence[Share]) -> Iterator[None]:
        """Within, the forward's rows belong to lanes as ``shares`` says."""
        before, self._shares = self._shares, shares
        try:
            yield
        finally:
            self._shares = before

    def add(self, name: str, y: Tensor, x: Tensor) -> Tensor:
        """``y`` with the low-rank paths of module ``name`` added; ``x`` its input, rows in front."""
        lanes: list[tuple[int, int, float, Tensor | None]] = []
        factors: list[Tensor] = []
        for share in self._shares:
            factor = share.attachment.factors.get(name) if share.attachment is not None else None
            if factor is None or share.attachment is None:
                continue
            mask = None
            if share.generator is not None and share.attachment.dropout > 0:
                keep = 1.0 - share.attachment.dropout
                shape = (share.stop - share.start, factor.A.shape[1])
                mask = torch.empty(shape, device=x.device, dtype=factor.A.dtype)
                mask.bernoulli_(keep, generator=share.generator).div_(keep)
            lanes.append((share.start, share.stop, share.attachment.scaling, mask))
            factors += [factor.A, factor.B]
        if not lanes:
            return y
        return _AddLowRank.apply(y, x, lanes, *factors)  # type: ignore[no-any-return]


class _PackedForward:
    """A mounted module's forward: its own, then the lanes' paths."""

    def __init__(self, mount: Mount, name: str, module: nn.Module) -> None:
        self.mount, self.name = mount, name
        self.own = type(module).forward
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.mount.add(self.name, self.own(self.module, x), x)
