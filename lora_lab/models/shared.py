"""The weights of a base model on a CPU, in memory once for all processes of the machine.

They are written once into :func:`~lora_lab.models.cache.cache_folder`, in the dtype that they are used in, matrices in
the model's order and nothing between them: those that a product merges (query, key and value; a gated MLP's gate and
up) lie side by side (:mod:`lora_lab.packing.frozen`). Every process maps that file, so that neither a change of dtype
nor a merged matrix nor the copy of a tied head is anybody's own.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_lab.errors import ModelError
from lora_lab.models.cache import CacheError, cache_folder, made_once, need_space
from lora_lab.models.loading import loading
from lora_lab.models.prequantised import digest, load_saved, opened
from lora_lab.models.weight_files import Planned, mapped, write_shard
from lora_lab.spec import ModelSpec

_FILE = "model.safetensors"
_RECIPE = "shared 1"  # changes when the files would be written otherwise

log = logging.getLogger(__name__)


def shared_file(spec: ModelSpec) -> Path | None:
    """The file of a ``wheel`` or ``pretrained`` model's weights in ``spec.dtype``, made if it is not there yet.

    ``None`` where there is none, so that each process holds weights of its own: for a model that brings its own code,
    and where the cache cannot be written or is too full, which is logged.

    Raises:
        ModelError: the model cannot be loaded.
    """
    from transformers import __version__

    where, _, config = opened(spec)
    commit = getattr(config, "_commit_hash", None)
    if spec.trust_remote_code or (commit is None and not Path(where).is_dir()):
        return None
    folder = cache_folder() / "shared" / digest(f"{_RECIPE} {__version__}", spec, where, commit)
    try:
        return made_once(folder, partial(_lay_out, spec), 0, spec.path or spec.name) / _FILE
    except CacheError as error:
        log.warning("Each process holds weights of its own: %s", error)
        return None


def load_shared(spec: ModelSpec, file: Path) -> Any:
    """The model whose weights are in ``file``, on the CPU, its tensors views of the mapped file.

    Raises:
        ModelError: the file is not whole, or another model's.
    """
    from transformers import AutoModelForCausalLM

    weights = mapped(file)
    with loading(spec):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=getattr(torch, spec.dtype), local_files_only=True
        )
    own = _tensors(model)
    if {name: (t.shape, t.dtype) for name, t in own.items()} != {n: (t.shape, t.dtype) for n, t in weights.items()}:
        raise ModelError(f"{file}: its tensors are not those of {type(model).__name__}. Remove its folder.")
    for name, tensor in own.items():
        tensor.data = weights[name]
    return model


def second_embeddings(model: Any, file: Path) -> Tensor:
    """The input embeddings of a model of :func:`load_shared` once more, for a head: no memory, and not the same one."""
    words = model.get_input_embeddings().weight
    (name,) = [name for name, parameter in model.named_parameters() if parameter is words]
    return mapped(file, name)[name]


def _tensors(model: Any) -> dict[str, Tensor]:
    """All that a file of the model holds, by name, each once."""
    parameters = dict(model.named_parameters())
    known = {id(parameter) for parameter in parameters.values()}
    rest = {name: t for name, t in model.state_dict(keep_vars=True).items() if id(t) not in known}
    return parameters | rest


def _lay_out(spec: ModelSpec, folder: Path) -> None:
    """Write the model as a folder of transformers'.

    The widest dtype comes first, and vectors (norms, biases) after the matrices, so that all begin where they should.
    """
    model = load_saved(spec, torch.device("cpu"))
    tensors = _tensors(model)
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), tensors[name].dim() < 2))
    plans = [Planned(name, tensors[name].dtype, tuple(tensors[name].shape)) for name in order]
    need_space(folder.parent, sum(plan.size for plan in plans), spec.path or spec.name)
    folder.mkdir()
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=True), encoding="utf-8")
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        text = generation.to_json_string(use_diff=True)
        (folder / "generation_config.json").write_text(text, encoding="utf-8")
    write_shard(folder / _FILE, plans, (tensors[name] for name in order))
