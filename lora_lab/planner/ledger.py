"""Live bytes of every storage that a stretch of torch code makes, and the operations it asks for.

:class:`Ledger` sees each operator call, books the storages of its outputs, and takes them off when the last
tensor and the last node of the autograd graph let go of them. It holds no tensor alive. Under a
``FakeTensorMode`` the code runs on tensors without data, so a model of any size is followed in seconds; on real
tensors it is the measurement that a prediction is held against.

What a kernel allocates inside itself (a matrix product's packed operands, say) is not seen.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from lora_lab.packing.phases import counted_by

_cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _flash_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


def _gemm_4bit(x: Tensor, weight: Tensor, shape: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * (x.numel() // x.shape[-1]) * shape[0] * shape[1]


_FLOPS: Mapping[str, Callable[..., int]] = {
    str(packet): formula
    for packet, formula in {
        **flop_registry,
        torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
        torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm],
        _cpu_flash: _flash,
        _cpu_flash_backward: _flash_backward,
    }.items()
} | {"bitsandbytes.gemm_4bit": _gemm_4bit}
"""torch's own FLOP formulas (two per multiply-add) by operator, and some that it leaves out: in place, attention on a
CPU, and products with 4-bit weights."""


@dataclass
class _Entry:
    part: int
    bytes: int


class Ledger(TorchDispatchMode):
    """A dispatch mode that books storages by part and counts FLOPs while it is entered.

    Use :meth:`phase` to say to which part new storages belong, :meth:`book` to say it of a tensor that is
    already there, :meth:`mark` to name a stretch of moments. ``flops`` counts the floating-point operations of the
    matrix products, those inside this project's own kernels among them. ``moments`` has one entry for each time that
    something was booked: the operator's name, and the live bytes of every part, in the order of ``parts``.

    Args:
        parts: names of the parts; a phase of another name is booked under the last of them.
        data: the tensors have data. Without, an operator that only writes into its arguments is not run.
    """

    def __init__(self, parts: Sequence[str] = ("all",), data: bool = False) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.moments: list[tuple[str, tuple[int, ...]]] = []
        self.marks: list[tuple[Any, int]] = []
        self.flops: int | Fraction = 0
        self._data = data
        self._live = [0] * len(self.parts)
        self._part = len(self.parts) - 1
        self._entries: Any = WeakIdKeyDictionary(ref_type=weakref.ref)  # storages compare by identity
        self._hearing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Follow what is done from here on, and hear what kernels compute that no operator call shows."""
        self._hearing.enter_context(counted_by(self.count))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Follow no more."""
        super().__exit__(*error)
        self._hearing.close()

    @property
    def live(self) -> dict[str, int]:
        """Live bytes by part."""
        return dict(zip(self.parts, self._live, strict=True))

    @contextlib.contextmanager
    def phase(self, part: str) -> Iterator[None]:
        """Within, new storages are booked under ``part``."""
        before, self._part = self._part, self._index(part)
        try:
            yield
        finally:
            self._part = before

    def begin(self) -> None:
        """Forget the moments, marks and FLOPs so far: what counts begins with what is alive now."""
        self.moments, self.marks, self.flops = [("begin", tuple(self._live))], [(("begin", 0), 0)], 0

    def count(self, flops: int) -> None:
        """Add operations that no operator call shows: those inside a kernel."""
        self.flops += flops

    def mark(self, label: Any) -> None:
        """Note that from here on the moments belong to ``label``."""
        self.marks.append((label, len(self.moments)))

    def book(self, tensor: Tensor, part: str) -> None:
        """Book ``tensor``'s storage under ``part``, moving it there when it was booked before."""
        self._book(tensor, self._index(part), "book")

    def _index(self, part: str) -> int:
        return self.parts.index(part) if part in self.parts else len(self.parts) - 1

    def _book(self, tensor: Tensor, part: int, name: str) -> None:
        storage = tensor.untyped_storage()
        entry = self._entries.get(storage)
        if entry is None:
            entry = _Entry(part, storage.nbytes())
            self._entries[storage] = entry
            weakref.finalize(storage, self._release, entry).atexit = False
        else:
            self._live[entry.part] -= entry.bytes
            entry.part = part
        self._live[part] += entry.bytes
        self.moments.append((name, tuple(self._live)))

    def _release(self, entry: _Entry) -> None:
        self._live[entry.part] -= entry.bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "prim":  # a question about a tensor, not an operation: most calls are
            return func(*args, **(kwargs or {}))
        schema = func._schema
        if not self._data and schema.is_mutable and not schema.returns:
            return None  # it writes into what is there (fused optimizers): nothing to see, and no data to write
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        formula = _FLOPS.get(name)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        leaves = (out,) if isinstance(out, Tensor) else tree_leaves(out)
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._entries:
                self._book(leaf, self._part, name)
        return out
