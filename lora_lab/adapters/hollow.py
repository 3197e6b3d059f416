"""A base model of the right shapes that takes no memory: what an adapter's files are read onto where weights are not
needed. Every tensor of it is one zero, seen as many times as its shape says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_lab.models import BaseModel, load_meta, load_tokenizer, role_modules
from lora_lab.spec import ModelSpec


def hollow(spec: ModelSpec) -> BaseModel:
    """The model of ``spec`` without its weights, its head untied, unquantised; its tokenizer is the real one.

    Raises:
        ModelError: as :func:`lora_lab.models.load`.
    """
    model: Any = load_meta(spec)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zero, requires_grad=False))
    return BaseModel(model, load_tokenizer(spec), spec, role_modules(model, spec), torch.device("cpu"))


def files_of(base: BaseModel) -> Path | None:
    """The folder of a model's own files, fetched first where they are on the hub; ``None`` for a random model.

    Raises:
        ModelError: they cannot be had.
    """
    from lora_lab.models.loading import loading
    from lora_lab.models.sources import location

    spec = base.spec
    if spec.source == "random":
        return None
    from lora_lab.models import prepare

    where = str(prepare(spec) or location(spec))
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download

    with loading(spec):
        return Path(snapshot_download(where, revision=spec.revision, allow_patterns=["*.json", "*.safetensors"]))
