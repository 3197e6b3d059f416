"""A resident base model with the paths of whichever lanes a forward names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lab.methods import Attachment
from lora_lab.models import BaseModel
from lora_lab.packing.dropout import seed_of
from lora_lab.packing.frozen import Frozen
from lora_lab.packing.linear import linear
from lora_lab.packing.stacks import Blocks, Share
from lora_lab.spec import MethodSpec


class Paths:
    """A model with the paths of whichever lanes a forward names.

    Only one forward at a time: use :meth:`shares` around it. The model's module tree and the values of its parameters
    stay as they are; modules that carry a path get a forward of their own while this object is mounted. The model's
    tensors need no data. ``kernels`` as in :class:`~lora_lab.packing.layout.Layout`.
    """

    def __init__(self, model: PreTrainedModel, kernels: str) -> None:
        self.model, self.kernels = model, kernels
        self._modules = dict(model.named_modules())
        self._mounted: dict[str, nn.Module] = {}
        self._frozen: dict[tuple[str, ...], Frozen] = {}
        self._shares: Sequence[Share] = ()
        self._blocks: Blocks | None = None
        self.noise: int | None = None
        """Seeds the dropout of a lane that runs the model as a whole; see :class:`Share`."""

    def mount(self, attachment: Attachment) -> None:
        """Make the modules that ``attachment`` targets ready for lanes."""
        for name in (*attachment.factors, *attachment.paths):
            if name not in self._mounted:
                module = self._modules[name]
                self._mounted[name] = module
                module.forward = _PackedForward(self, name, module)

    def unmount(self) -> None:
        """Give every module its own forward back, and a weight of its own."""
        for module in self._mounted.values():
            del module.forward
        self._mounted.clear()
        for frozen in self._frozen.values():
            frozen.separate()
        self._frozen.clear()

    @contextlib.contextmanager
    def shares(self, shares: Sequence[Share]) -> Iterator[None]:
        """Within, the forward's rows belong to lanes as ``shares`` says."""
        before = self._shares, self._blocks
        self._shares = shares
        self._blocks = Blocks(shares, next(self.model.parameters()).device, self.kernels)
        try:
            yield
        finally:
            self._shares, self._blocks = before

    def again(self) -> Callable[[], AbstractContextManager[None]]:
        """What gives this forward its shares back when a part of it is computed once more, in its backward."""
        kept = self._shares, self._blocks

        @contextlib.contextmanager
        def resumed() -> Iterator[None]:
            before = self._shares, self._blocks
            self._shares, self._blocks = kept
            try:
                yield
            finally:
                self._shares, self._blocks = before

        return resumed

    def linear(self, names: Sequence[str], x: Tensor) -> Tensor:
        """``(rows, out)`` of ``x (rows, in)``: modules ``names``, which read the same input, side by side."""
        assert self._blocks is not None
        if not self._on_path(names):
            frozen = self._product(names)
            return linear(x, frozen, *self._blocks.at(names, frozen.columns, x))
        return torch.cat([self._along(name, x) for name in names], dim=1)

    def carries(self, name: str) -> bool:
        """Whether any lane of this forward has a path at module ``name``."""
        return any(share.carries(name) for share in self._shares)

    @property
    def along_blocks(self) -> bool:
        """Whether any lane of this forward has a path at a module that is no linear map."""
        return any(self.leaves_layers(share.attachment) for share in self._shares if share.attachment is not None)

    def leaves_layers(self, attachment: Attachment) -> bool:
        """Whether ``attachment`` has a path at a module that is no linear map."""
        return any(not _linear_map(self._modules[name]) for name in attachment.paths)

    @property
    def head(self) -> tuple[str, Any]:
        """The output embedding by name, and itself."""
        module = self.model.get_output_embeddings()
        return next(name for name, other in self._modules.items() if other is module), module

    def own(self, name: str, x: Tensor, *arguments: Any) -> Tensor:
        """What module ``name`` itself gives, without any lane's path."""
        module = self._modules[name]
        return type(module).forward(module, x, *arguments)  # type: ignore[no-any-return]

    def _product(self, names: Sequence[str]) -> Frozen:
        key = tuple(names)
        if key not in self._frozen:
            self._frozen[key] = Frozen(key, [self._modules[name] for name in key], self.kernels)
        return self._frozen[key]

    def _on_path(self, names: Sequence[str]) -> bool:
        return any(
            name in share.attachment.paths for share in self._shares if share.attachment is not None for name in names
        )

    def _along(self, name: str, x: Tensor) -> Tensor:
        """Module ``name`` where some lane has a :class:`~lora_lab.methods.RowPath`: its rows go their own way."""
        assert self._blocks is not None
        given = x
        for share in self._shares:
            path = share.attachment.paths.get(name) if share.attachment is not None else None
            if path is not None:
                rows = x[share.start : share.stop]
                if (changed := path.before(rows)) is not rows:
                    given = _Replace.apply(given, changed.to(x.dtype), share.start)
        module = self._modules[name]
        if _linear_map(module):
            frozen = self._product((name,))
            y = linear(given, frozen, *self._blocks.at((name,), frozen.columns, given))
        else:
            y = self.own(name, given)
        for share in self._shares:
            path = share.attachment.paths.get(name) if share.attachment is not None else None
            if path is not None:
                rows = y[share.start : share.stop]
                seed = None if share.noise is None else seed_of(share.noise, name)
                if (changed := path.after(x[share.start : share.stop], rows, seed)) is not rows:
                    y = _Replace.apply(y, changed.to(y.dtype), share.start)
        return y


class Mount(Paths):
    """A resident base model with the paths of whichever lanes a forward names."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base.model, base.device.type)
        self.base = base
        self.nobody: Attachment | None = None
        """What stands for the base model itself in a forward."""
        if base.shards is not None:
            self.nobody = Attachment(MethodSpec(roles=()), packable=False)
            self.mount(self.nobody)

    def mount(self, attachment: Attachment) -> None:
        """See :class:`Paths`. A divided model is run as a whole, for its blocks gather their weights when called."""
        super().mount(attachment)
        if self.base.shards is not None and attachment.solo is None:
            attachment.solo = partial(self._whole, attachment)

    def _whole(self, attachment: Attachment, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(n, t, V)`` of padded tokens ``(n, t)``."""
        with self.shares([Share(attachment, 0, ids.numel(), self.noise)]):
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return logits


def _linear_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


class _Replace(torch.autograd.Function):
    """``x`` with ``rows`` in place of its own from ``start`` on: selected, so that neither touches the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, start: int) -> Tensor:
        ctx.start, ctx.stop = start, start + len(rows)
        out = x.clone()
        out[ctx.start : ctx.stop] = rows
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        dx = grads[0].clone()
        dx[ctx.start : ctx.stop] = 0
        return dx, grads[0][ctx.start : ctx.stop], None


class _PackedForward:
    """A mounted module's forward: its own, with the lanes' paths."""

    def __init__(self, paths: Paths, name: str, module: nn.Module) -> None:
        self.paths, self.name, self.module = paths, name, module

    def __call__(self, x: Tensor) -> Tensor:
        if not self.paths.carries(self.name):
            return self.paths.own(self.name, x)
        y = self.paths.linear((self.name,), x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], -1)
