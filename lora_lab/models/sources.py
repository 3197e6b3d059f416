"""Where a base model's files are, its config, and what its loader's complaints mean to the user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ModelError, nearest
from lora_lab.models.loading import loading
from lora_lab.models.wheel import gguf_file, is_prepared, prepared_folder
from lora_lab.spec import ModelSpec, thaw

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def location(spec: ModelSpec) -> str:
    """The local folder, or the hub id, of a ``pretrained`` model.

    Raises:
        ModelError: a folder that is missing or holds no model, or a text that is no hub id either.
    """
    path = str(spec.path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.path={path}: the folder has no config.json. "
                "Give a folder written by save_pretrained, or a hub id such as HuggingFaceTB/SmolLM2-135M."
            )
        if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
            raise ModelError(
                f"model.path={path}: the folder has a config.json and no weights (*.safetensors). "
                "Copy them there, or give another folder."
            )
        return str(folder)
    if path.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(path):
        raise ModelError(
            f"model.path={path}: no such folder. Give an existing folder, or a hub id such as "
            "HuggingFaceTB/SmolLM2-135M."
        )
    return path


def config_of(spec: ModelSpec) -> PretrainedConfig:
    """The model's config, without its weights: from ``spec.config`` if given, else read from its files.

    Raises:
        ModelError: it cannot be read, or names a field its architecture does not have.
    """
    from transformers import AutoConfig

    if spec.config:
        return _config_from_fields(spec)
    if spec.source == "wheel":
        with loading(spec):
            if is_prepared(spec):
                return AutoConfig.from_pretrained(prepared_folder(spec), local_files_only=True)
            file = gguf_file(spec)
            return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    where = location(spec)
    with loading(spec):
        return AutoConfig.from_pretrained(where, **hub_options(spec, where))


def hub_options(spec: ModelSpec, where: str) -> dict[str, Any]:
    """What every ``from_pretrained`` of a model is told; a folder is never looked up on the hub."""
    if Path(where).is_dir():
        return {"local_files_only": True, "trust_remote_code": spec.trust_remote_code}
    return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}


def _config_from_fields(spec: ModelSpec) -> PretrainedConfig:
    from transformers import AutoConfig

    fields: dict[str, Any] = {name: thaw(value) for name, value in spec.config}
    kind = fields.pop("model_type", None)
    if not isinstance(kind, str):
        raise ModelError(
            f"model.config: model_type is missing, found {', '.join(fields) or 'nothing'}. "
            "Add the architecture, e.g. model.config.model_type=llama."
        )
    with loading(spec):
        known = AutoConfig.for_model(kind)
    for name in fields:
        if not hasattr(known, name):
            raise ModelError(
                f"model.config.{name}: {kind} has no such field{nearest(name, known.to_dict())} "
                "Fields are those of its transformers config."
            )
    with loading(spec):
        return AutoConfig.for_model(kind, **fields)
