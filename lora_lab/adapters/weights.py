"""A base model's weights, read a few rows at a time.

Peak memory while they are streamed is a block of rows beside whatever the reader holds: :class:`Stored` maps one shard
of the base at a time. Rows are those of a tensor as it is
stored (``Conv1D`` of GPT-2: ``(in, out)``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lora_lab.errors import CheckpointError
from lora_lab.files import read_json
from lora_lab.models import BaseModel, frozen_weight
from lora_lab.models.quantised import rounded
from lora_lab.spec import ModelSpec

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5_000_000_000
"""A model that has no shards of its own is written in ones of this size at most."""


class Weights(Protocol):
    """Where a base model's tensors come from, by the names that they have in the model."""

    def shards(self) -> Mapping[str, Sequence[str]]:
        """The tensors of each file, in the files' order. A head that is tied to the embeddings is not among them."""

    def shape(self, name: str) -> tuple[int, ...]:
        """As it is stored."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start … stop`` of what is stored, in the dtype that the model is used in."""


class Stored:
    """Weights in safetensors files, quantised and back where the model's spec says so.

    Names in the files may lack the prefix that the model's own have (``transformer.``).
    """

    def __init__(self, folder: Path, model: Any, spec: ModelSpec) -> None:
        self.folder, self.spec = folder, spec
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self.quantised = _quantised_names(model) if spec.quantization != "none" else frozenset()
        self._conv = {f"{n}.weight" for n, module in model.named_modules() if type(module).__name__ == "Conv1D"}
        mine = model.state_dict().keys()
        self._files: dict[str, tuple[str, str]] = {}
        for file in _files(folder):
            with _opened(folder / file) as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a dict
                    name = key if key in mine else f"{model.base_model_prefix}.{key}"
                    self._files[name if name in mine else key] = (file, key)
        self._open: tuple[str, Any] | None = None
        self._rounded: tuple[str, Tensor] | None = None

    def covers(self, names: Iterable[str]) -> bool:
        """Whether all of the tensors ``names`` are there."""
        return all(name in self._files for name in names)

    def shards(self) -> dict[str, list[str]]:
        """See :class:`Weights`."""
        found: dict[str, list[str]] = {}
        for name, (file, _) in self._files.items():
            found.setdefault(file, []).append(name)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """See :class:`Weights`."""
        return tuple(self._slice(name).get_shape())

    def original(self, name: str) -> Tensor:
        """The whole tensor as the files have it, in the model's dtype."""
        return self._cast(self._slice(name)[:])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See :class:`Weights`."""
        if name in self.quantised:
            if self._rounded is None or self._rounded[0] != name:
                self._rounded = None
                whole = self.original(name)
                conv = name in self._conv
                self._rounded = (name, rounded(whole.t(), self.spec).t() if conv else rounded(whole, self.spec))
            return self._rounded[1][start:stop]
        rows = self._slice(name)
        return self._cast(rows[start:stop] if rows.get_shape() else rows[...])

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _slice(self, name: str) -> Any:
        file, key = self._files[name]
        if self._open is None or self._open[0] != file:
            self._open = None  # the shard before is let go of first
            self._open = (file, _opened(self.folder / file))
        return self._open[1].get_slice(key)


class Held:
    """The weights of a model in memory: a random one, or one whose files are quantised already."""

    def __init__(self, base: BaseModel) -> None:
        model: Any = base.model
        head = model.get_output_embeddings()
        self._modules = {
            f"{name}.weight": module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        }
        tied = getattr(model, "_lora_lab_untied", False)
        extras = ("absmax", "quant_map", "quant_state", "SCB", "weight_format", "nested_absmax", "nested_quant_map")
        self._tensors = {
            name: value
            for name, value in model.state_dict().items()
            if not (tied and self._modules.get(name) is head)
            and not name.split(".")[-1].startswith(extras)
            and not any(f"weight.{extra}" in name for extra in ("quant_state", "bitsandbytes"))
        }

    def shards(self) -> dict[str, list[str]]:
        """See :class:`Weights`."""
        sizes = {name: self.read(name).numel() * self.read(name).element_size() for name in self._tensors}
        groups: list[list[str]] = [[]]
        used = 0
        for name, size in sizes.items():
            if groups[-1] and used + size > SHARD_BYTES:
                groups.append([])
                used = 0
            groups[-1].append(name)
            used += size
        if len(groups) == 1:
            return {SINGLE: groups[0]}
        return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}

    def shape(self, name: str) -> tuple[int, ...]:
        """See :class:`Weights`."""
        return tuple(self.read(name).shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See :class:`Weights`."""
        module = self._modules.get(name)
        if module is None:
            tensor: Tensor = self._tensors[name]
        else:
            weight = frozen_weight(module)
            conv = type(module).__name__ == "Conv1D" or getattr(module, "source_cls", nn.Linear).__name__ == "Conv1D"
            tensor = weight.t() if conv else weight
        return tensor[start:stop] if tensor.dim() else tensor


def _quantised_names(model: Any) -> frozenset[str]:
    """The weights that quantisation touches: those of linear maps but the head."""
    head = model.get_output_embeddings()
    return frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if module is not head and (type(module) is nn.Linear or type(module).__name__ == "Conv1D")
    )


def _files(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        return list(dict.fromkeys(sorted(read_json(folder / INDEX)["weight_map"].values())))
    return sorted(file.name for file in folder.glob("*.safetensors"))


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}). Copy the model again.") from error


def write_index(folder: Path, places: Mapping[str, str], total: int) -> None:
    """The index of a model in several files: which tensor is in which."""
    if len(set(places.values())) > 1:
        tree = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
