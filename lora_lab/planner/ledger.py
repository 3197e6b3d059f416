"""Live bytes of every storage that a stretch of torch code makes, and the operations it asks for.

:class:`Ledger` sees each operator call, books the storages of its outputs, and takes them off when the last
tensor and the last node of the autograd graph let go of them. It holds no tensor alive. Under a
``FakeTensorMode`` the code runs on tensors without data, so a model of any size is followed in seconds.

What a kernel allocates inside itself (a matrix product's packed operands, say) is not seen. The ledger is for
tensors without data: an operator that only writes into its arguments is not run.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

_cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _flash_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


_FLOPS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm],
    _cpu_flash: _flash,
    _cpu_flash_backward: _flash_backward,
}
"""torch's own FLOP formulas (two per multiply-add), and some that it leaves out: in place, and attention on a CPU."""


@dataclass(frozen=True)
class Crest:
    """A moment of a step: bytes of shared parts, bytes of a lane's own parts, and all parts by name."""

    shared: int
    own: int
    parts: Mapping[str, int]


@dataclass
class _Entry:
    part: str
    bytes: int


class Ledger(TorchDispatchMode):
    """A dispatch mode that books storages by part and counts FLOPs while it is entered.

    Use :meth:`phase` to say to which part new storages belong, :meth:`book` to say it of a tensor that is
    already there. ``flops`` counts the floating-point operations of the matrix products.

    Several lanes that do the same in one step hold the parts in ``shared`` once and all others once each.
    ``crests`` are the moments that can be the peak for some number of lanes: none of them is below
    another one both in shared and in other bytes.

    Args:
        shared: names of the parts that a pack holds once, however many lanes it has.
    """

    def __init__(self, shared: Collection[str] = ()) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.crests: list[Crest] = []
        self.flops = 0
        self._shared = frozenset(shared)
        self._part = "other"
        self._entries: Any = WeakIdKeyDictionary(ref_type=weakref.ref)  # storages compare by identity

    @contextlib.contextmanager
    def phase(self, part: str) -> Iterator[None]:
        """Within, new storages are booked under ``part``."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def book(self, tensor: Tensor, part: str) -> None:
        """Book ``tensor``'s storage under ``part``, moving it there when it was booked before."""
        storage = tensor.untyped_storage()
        entry = self._entries.get(storage)
        if entry is None:
            entry = _Entry(part, storage.nbytes())
            self._entries[storage] = entry
            weakref.finalize(storage, self._release, entry).atexit = False
        else:
            self.live[entry.part] -= entry.bytes
            entry.part = part
        self.live[part] += entry.bytes
        self._notice()

    def _notice(self) -> None:
        shared = sum(size for part, size in self.live.items() if part in self._shared)
        own = sum(self.live.values()) - shared
        if any(c.shared >= shared and c.own >= own for c in self.crests):
            return
        now = Crest(shared, own, {part: size for part, size in self.live.items() if size})
        self.crests = [c for c in self.crests if c.shared > shared or c.own > own] + [now]

    def _release(self, entry: _Entry) -> None:
        self.live[entry.part] -= entry.bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable and not schema.returns:
            return None  # it writes into what is there (fused optimizers): nothing to see, and no data to write
        out = func(*args, **(kwargs or {}))
        formula = _FLOPS.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._entries:
                self.book(leaf, self._part)
        return out
