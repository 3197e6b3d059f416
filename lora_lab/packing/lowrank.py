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
from transformers import PreTrainedModel

from lora_lab.methods import Attachment
from lora_lab.models import BaseModel
from lora_lab.packing.phases import phase


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


@dataclass(frozen=True, eq=False)
class _LaneRows:
    """A lane's rows in one module: ``mask (rows, in)`` is its dropout's, already divided by what is kept."""

    start: int
    stop: int
    scaling: float
    mask: Tensor | None

    def dropped(self, rows: Tensor) -> Tensor:
        """The lane's input after dropout."""
        return rows if self.mask is None else rows * self.mask


class _AddLowRank(torch.autograd.Function):
    """``y (…, out)`` with each lane's low-rank product of ``x (…, in)`` added to its rows, in place.

    Rows are cast to the adapters' dtype (in which stock PEFT computes, too) once for all lanes. Saved are ``x``,
    which q, k and v share, each lane's scaled ``(rows, r)`` product, and its dropout mask.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, lanes: list[_LaneRows], *factors: Tensor) -> Tensor:
        flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        first, last = lanes[0].start, lanes[-1].stop
        rows, out = flat_x[first:last].to(factors[0].dtype), flat_y[first:last].to(factors[0].dtype)
        inner = []
        for lane, A, B in zip(lanes, factors[::2], factors[1::2], strict=True):
            mine = slice(lane.start - first, lane.stop - first)
            with phase("workspace"):
                dropped = lane.dropped(rows[mine])
            h = (dropped @ A.t()).mul_(lane.scaling)
            del dropped
            out[mine].addmm_(h, B.t())
            inner.append(h)
        flat_y[first:last] = out
        ctx.lanes = lanes
        ctx.save_for_backward(x, *factors, *inner)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        lanes: list[_LaneRows] = ctx.lanes
        x, *rest = ctx.saved_tensors
        factors, inner = rest[: 2 * len(lanes)], rest[2 * len(lanes) :]
        flat_x, dy = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, grads[0].shape[-1])
        first, last = lanes[0].start, lanes[-1].stop
        rows, g = flat_x[first:last].to(factors[0].dtype), dy[first:last].to(factors[0].dtype)
        back = torch.zeros_like(rows) if ctx.needs_input_grad[1] else None
        out: list[Tensor] = []
        for lane, A, B, h in zip(lanes, factors[::2], factors[1::2], inner, strict=True):
            mine = slice(lane.start - first, lane.stop - first)
            with phase("workspace"):
                dh = (g[mine] @ B).mul_(lane.scaling)
                dropped = lane.dropped(rows[mine])
            with phase("gradients"):
                out.append(dh.t() @ dropped)
                del dropped
                out.append(g[mine].t() @ h)
            if back is not None:
                torch.mm(dh, A, out=back[mine])
                if lane.mask is not None:
                    back[mine].mul_(lane.mask)
        dx = None
        if back is not None:
            dx = torch.zeros_like(flat_x)
            dx[first:last] = back
            dx = dx.view(x.shape)
        return grads[0], dx, None, *out


class Paths:
    """A model with the low-rank paths of whichever lanes a forward names.

    Only one forward at a time: use :meth:`shares` around it. The model's parameters and module tree stay as
    they are; modules that carry a path get a forward of their own while this object is mounted. The model's tensors
    need no data.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._shares: Sequence[Share] = ()
        self._mounted: dict[str, nn.Module] = {}

    def mount(self, attachment: Attachment) -> None:
        """Make the modules that ``attachment`` targets ready for lanes."""
        for name in attachment.factors:
            if name not in self._mounted:
                module = self.model.get_submodule(name)
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
        lanes: list[_LaneRows] = []
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
            lanes.append(_LaneRows(share.start, share.stop, factor.scaling, mask))
            factors += [factor.A, factor.B]
        if not lanes:
            return y
        return _AddLowRank.apply(y, x, lanes, *factors)  # type: ignore[no-any-return]


class Mount(Paths):
    """A resident base model with the low-rank paths of whichever lanes a forward names."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base.model)
        self.base = base


class _PackedForward:
    """A mounted module's forward: its own, then the lanes' paths."""

    def __init__(self, paths: Paths, name: str, module: nn.Module) -> None:
        self.paths, self.name = paths, name
        self.own = type(module).forward
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.paths.add(self.name, self.own(self.module, x), x)
