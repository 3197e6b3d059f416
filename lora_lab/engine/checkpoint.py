"""Checkpoints of a lane: one safetensors file that is whole or refused.

It holds tensors (adapter, optimizer state, best adapter, random state) and a JSON state in the header,
with a SHA-256 over all of it, so that a truncated or bit-flipped file is detected and named. No pickles.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_lab.errors import CheckpointError
from lora_lab.files import writing
from lora_lab.models.weight_files import bytes_of, write_tensors

FILE = "checkpoint.safetensors"
STEM = "stem.safetensors"
"""A checkpoint that longer runs begin from (see :mod:`lora_lab.worker.stages`)."""


def write(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], file: str = FILE) -> None:
    """Write ``folder/file``; the former one stays until this one is whole."""
    text = json.dumps(state, sort_keys=True)
    header = {"state": text, "sha256": _digest(tensors, text)}
    with writing(folder / file) as opened:
        write_tensors(opened, tensors, header)


def read(folder: Path, file: str = FILE) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and state of a folder's checkpoint; ``None`` where there is none.

    Raises:
        CheckpointError: the file is truncated, altered, or not a checkpoint.
    """
    path = folder / file
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        text = header["state"]
        whole = header["sha256"] == _digest(tensors, text)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole checkpoint ({error}). {_REMEDY}") from error
    if not whole:
        raise CheckpointError(f"{path}: its checksum does not match its content. {_REMEDY}")
    state: dict[str, Any] = json.loads(text)
    return tensors, state


def fork(parent: Path, folder: Path, key: str, *, step: int | None = None, fresh_optimizer: bool) -> int:
    """Begin a run in ``folder`` where the checkpoint of ``parent`` stands; returns its step.

    With ``fresh_optimizer`` the optimizer's state is left out: it is another optimizer's.

    Raises:
        CheckpointError: ``parent`` has no checkpoint, or a damaged one, or one of another step than ``step``.
    """
    found = read(parent)
    if found is None:
        raise CheckpointError(
            f"{parent / FILE}: not there; it was removed by prune-files, or launcher.keep_checkpoints is false. "
            "Nothing can branch off that run."
        )
    tensors, state = found
    if step is not None and state["step"] != step:
        raise CheckpointError(
            f"{parent / FILE}: stands at step {state['step']} by now, and a copy of step {step} was to begin there. "
            "That run cannot be made again; begin the sweep again under another sweep.name if it matters."
        )
    if fresh_optimizer:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
        state["optimizer"] = {}
    write(folder, tensors, state | {"key": key})
    return int(state["step"])


_REMEDY = "Delete it to train this run again from its beginning."


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
