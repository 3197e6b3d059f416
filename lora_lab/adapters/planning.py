"""Which tensors of a model an adapter alters, and the folder that a merged model is written to."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_lab.adapters.changes import Change
from lora_lab.errors import MethodError, SweepFolderError
from lora_lab.files import folder_errors


@dataclass(frozen=True)
class Plan:
    """The changes by full name of tensor, and which tensors of the model are linear maps stored as ``(in, out)``."""

    weights: Mapping[str, Change]
    biases: Mapping[str, Change]
    conv: frozenset[str]
    head: str | None
    words: str
    untied: bool

    @property
    def altered(self) -> frozenset[str]:
        """Names of the tensors that are other ones afterwards."""
        return frozenset(self.weights) | frozenset(self.biases)


def plan_of(found: Mapping[str, Change], model: Any, modules: Mapping[str, Any], name: str) -> Plan:
    """The tensors that the changes ``found`` alter.

    Raises:
        MethodError: a bias where the architecture has none.
    """
    weights, biases = {}, {}
    for module, change in found.items():
        has_bias = isinstance(getattr(modules[module], "bias", None), Tensor)
        if change.alters_weight and modules[module].weight.dim() == 2:
            weights[f"{module}.weight"] = change
        if change.alters_bias(has_bias):
            if not has_bias:
                raise MethodError(
                    f"{name}: it has a bias for {module}, and {type(model).__name__} has no place for one there. "
                    "Serve it beside the base."
                )
            biases[f"{module}.bias"] = change
    names = {id(module): path for path, module in modules.items()}
    head = names.get(id(model.get_output_embeddings()))
    head = None if head is None else f"{head}.weight"
    return Plan(
        weights,
        biases,
        frozenset(f"{path}.weight" for path, module in modules.items() if type(module).__name__ == "Conv1D"),
        head,
        f"{names[id(model.get_input_embeddings())]}.weight",
        head in weights and bool(getattr(model, "_lora_lab_untied", False)),
    )


def check_free(out: Path) -> None:
    """Refuse a folder in which something is.

    Raises:
        SweepFolderError
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SweepFolderError(f"--out {out}: something is there already. Choose another folder, or remove it.")


@contextlib.contextmanager
def written(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends well, and is removed when it does not.

    Raises:
        SweepFolderError: it cannot be made.
    """
    beside = out.with_name(f".{out.name}.partial")
    with folder_errors(out):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    try:
        yield beside
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if out.is_dir():
        out.rmdir()
    beside.replace(out)
