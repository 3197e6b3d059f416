"""Saved models, quantised while they are loaded, and the copies that are kept because quantising takes time.

On a CPU 4-bit quantisation takes 5 s for 100M weights, so it is done once, into
:func:`~lora_lab.models.cache.cache_folder`; a GPU does it while the weights arrive. Both are transformers' own.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_lab.models.cache import cache_folder, made_once
from lora_lab.models.loading import loading
from lora_lab.models.quantised import check_quantised, quantisation_config
from lora_lab.models.sources import hub_options, location
from lora_lab.models.wheel import prepare
from lora_lab.spec import FOUR_BIT, ModelSpec

_RECIPE = "1"  # changes when the copies would be written otherwise


def load_saved(spec: ModelSpec, device: torch.device) -> Any:
    """A ``wheel`` or ``pretrained`` model on ``device``, its weights quantised as ``spec`` says.

    Raises:
        ModelError: it cannot be loaded, or its files are quantised otherwise.
    """
    where, options, config = opened(spec)
    if spec.quantization == "none":
        return _load(spec, where, options, device)
    if getattr(config, "quantization_config", None) is not None:
        return _load(spec, where, options, device, device_map={"": device})
    if device.type == "cpu" and spec.quantization in FOUR_BIT:
        folder = cache_folder() / "quantised" / digest(_RECIPE, spec, where, getattr(config, "_commit_hash", None))
        need = sum(file.stat().st_size for file in Path(where).glob("*.safetensors"))
        where = str(made_once(folder, partial(_convert, spec, where, options), need, spec.path or spec.name))
        return _load(spec, where, hub_options(spec, where), device, device_map={"": device})
    return _load(spec, where, options, device, device_map={"": device}, quantization_config=quantisation_config(spec))


def _load(spec: ModelSpec, where: str, options: dict[str, Any], device: torch.device, **quantised: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with loading(spec):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, spec.dtype), **options, **quantised)
        return model if quantised else model.to(device)


def _convert(spec: ModelSpec, where: str, options: dict[str, Any], folder: Path) -> None:
    cpu = torch.device("cpu")
    model = _load(spec, where, options, cpu, device_map={"": cpu}, quantization_config=quantisation_config(spec))
    with loading(spec), contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)


def opened(spec: ModelSpec) -> tuple[str, dict[str, Any], Any]:
    """The folder or hub id of a ``wheel`` or ``pretrained`` model, what loaders are told of it, and its config.

    Raises:
        ModelError: it cannot be read, or its files are quantised otherwise than ``spec`` says.
    """
    from transformers import AutoConfig

    where = str(prepare(spec) or location(spec))
    options = hub_options(spec, where)
    with loading(spec):
        config = AutoConfig.from_pretrained(where, **options)
    check_quantised(config, spec)
    return where, options, config


def digest(recipe: str, spec: ModelSpec, where: str, commit: str | None) -> str:
    """Names a copy by what it is made of: a folder by its files, a hub model by its commit."""
    files = sorted(file for file in Path(where).glob("*") if file.is_file()) if Path(where).is_dir() else []
    made_of = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = f"{recipe} {spec.quantization} {spec.double_quant} {spec.dtype} {where} {commit} {made_of}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]
