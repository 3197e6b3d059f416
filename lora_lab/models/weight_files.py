"""Safetensors files, written tensor by tensor, and mapped as one stretch of memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lora_lab.errors import ModelError

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls a dtype."""
_DTYPES = {name: dtype for dtype, name in NAMES.items()}
_ALIGNMENT = 64
"""Bytes; where the numbers of a file begin, for products of vectors that are as wide as a line of the cache."""


@dataclass(frozen=True)
class Planned:
    """A tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_shard(path: Path, tensors: Sequence[Planned], blocks: Iterator[Tensor]) -> int:
    """Write a safetensors file of ``tensors``, whose numbers come as ``blocks``, in order; the bytes of it.

    The format needs only the sizes beforehand, so that no two blocks are in memory at once.
    """
    with path.open("wb") as file:
        return _write_all(file, tensors, blocks, {"format": "pt"})


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Write a safetensors file from where ``tensors`` lie, without a copy of them in memory; the bytes of it.

    The widest numbers come first, so that each tensor is aligned.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    planned = [Planned(name, tensors[name].dtype, tuple(tensors[name].shape)) for name in order]
    return _write_all(file, planned, (tensors[name] for name in order), metadata)


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they lie in memory; one on another device, or with gaps, is copied first."""
    numbers = tensor.detach().cpu().contiguous().reshape(-1)
    return numbers.view(torch.uint8).numpy().data


def _write_all(
    file: BinaryIO, tensors: Sequence[Planned], blocks: Iterable[Tensor], metadata: Mapping[str, str]
) -> int:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size],
        }
        at += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    written = sum(file.write(bytes_of(block)) for block in blocks)
    assert written == at, f"{written} bytes of {at}"
    return at


def mapped(path: Path, only: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file that :func:`write_shard` wrote, as views of one memory-mapped storage.

    All processes that map it share the memory. What one of them writes into a tensor becomes that process's own, a page
    at a time, and of this mapping: another call gives another. ``only`` names the tensor that is wanted.

    Raises:
        ModelError: the file is not whole.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        del header["__metadata__"]
        size = path.stat().st_size
        if size != 8 + length + max((about["data_offsets"][1] for about in header.values()), default=0):
            raise ValueError(f"it has {size} bytes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}). Remove its folder to have it made again."
        ) from error
    storage = torch.UntypedStorage.from_file(str(path), False, size)[8 + length :]
    found: dict[str, Tensor] = {}
    for name, about in header.items():
        if only is None or name == only:
            dtype, (start, stop) = _DTYPES[about["dtype"]], about["data_offsets"]
            part, first = (storage, start) if only is None else (storage[start:stop], 0)
            flat = torch.empty(0, dtype=dtype).set_(part)
            first //= dtype.itemsize
            found[name] = flat[first : first + math.prod(about["shape"])].view(about["shape"])
    return found
