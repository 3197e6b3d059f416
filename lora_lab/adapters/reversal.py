"""What a merged model keeps so that its base comes back bit for bit.

Taking an update off again rounds a second time, and where a sum went into another power of two the first rounding has
lost bits. So the merge tries it on the spot and keeps, for each tensor, the few numbers that would come out otherwise;
or, where they are many (everything that was scaled), the whole tensor. A digest of the original says that it worked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from lora_lab.errors import CheckpointError

KEPT = "unmerge"
"""The folder of it within the merged model's."""
DENSE = 0.1
"""Share of numbers beyond which a whole tensor is kept: each alone takes the place of a few."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """The same memory as whole numbers, so that -0.0 differs from 0.0 and a NaN equals itself."""
    return tensor.contiguous().view(_BITS[tensor.dtype.itemsize])


class Reversal:
    """Collects what one shard needs; ``tensors`` by ``<name>.<index|values|whole|new|digest>``."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._name = ""

    def begin(self, name: str) -> None:
        """Tensor ``name`` comes next."""
        self._name, self._at, self._dense = name, 0, False
        self._values: list[Tensor] = []
        self._index: list[Tensor] = []
        self._digest = hashlib.sha256()

    def compare(self, rows: Tensor, back: Tensor) -> None:
        """The next rows as they were, and as they would come back."""
        before = bits(rows).flatten()
        self._digest.update(before.numpy().tobytes())
        wrong = before != bits(back).flatten()
        if self._at == 0:
            self._dense = int(wrong.sum()) > DENSE * wrong.numel()
        if self._dense:
            wrong[:] = True
        index = wrong.nonzero().squeeze(1)
        self._index.append(index + self._at)
        self._values.append(rows.flatten()[index].clone())
        self._at += rows.numel()

    def end(self, *, new: bool) -> None:
        """All rows have been compared; a tensor that was not there before (an untied head) is ``new``."""
        if new:
            self.tensors[f"{self._name}.new"] = torch.ones(1, dtype=torch.uint8)
        elif self._at:
            if not self._dense:
                self.tensors[f"{self._name}.index"] = torch.cat(self._index)
            self.tensors[f"{self._name}.{'whole' if self._dense else 'values'}"] = torch.cat(self._values)
            digest = torch.frombuffer(bytearray(self._digest.digest()), dtype=torch.uint8)
            self.tensors[f"{self._name}.digest"] = digest


class Reverse:
    """Reads what :class:`Reversal` has collected for one shard."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def is_new(self, name: str) -> bool:
        """Whether the base has no such tensor."""
        return f"{name}.new" in self.tensors

    def altered(self, name: str) -> bool:
        """Whether the merge made another tensor of it."""
        return f"{name}.digest" in self.tensors

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of the base's tensor."""
        kind = "whole" if f"{name}.whole" in self.tensors else "values"
        return self.tensors[f"{name}.{kind}"].dtype

    def restored(self, name: str, back: Tensor) -> Tensor:
        """The base's tensor, of ``back``, which is the merged one with the update taken off.

        Raises:
            CheckpointError: it is not the base's tensor bit for bit.
        """
        if f"{name}.whole" in self.tensors:
            found = self.tensors[f"{name}.whole"].view(back.shape)
        else:
            flat = back.flatten().clone()
            flat[self.tensors[f"{name}.index"]] = self.tensors[f"{name}.values"]
            found = flat.view(back.shape)
        digest = hashlib.sha256(bits(found).flatten().numpy().tobytes()).digest()
        if digest != self.tensors[f"{name}.digest"].numpy().tobytes():
            raise CheckpointError(
                f"{name}: the base's tensor does not come back bit for bit: the files were changed after the merge, or "
                "this machine multiplies matrices otherwise. Take the base model itself."
            )
        return found
