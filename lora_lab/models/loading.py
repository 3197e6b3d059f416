"""What transformers, the hub and safetensors raise while a model is loaded, as one error with a remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lora_lab.errors import ModelError, OutOfMemory
from lora_lab.models.cache import cache_folder
from lora_lab.models.quiet import quiet
from lora_lab.spec import ModelSpec


@contextlib.contextmanager
def loading(spec: ModelSpec) -> Iterator[None]:
    """Run transformers quietly and turn its exceptions into a :class:`ModelError` with a remedy."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        with quiet():
            yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"model {spec.name} does not fit on the device ({_first_line(error)}). "
            "Free its memory, choose a smaller model, or use device=cpu."
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ImportError,
        NotImplementedError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        where = f"model.path={spec.path}" if spec.source != "random" else f"model.config of {spec.name}"
        raise ModelError(f"{where}: cannot be loaded: {_first_line(error)} {_remedy(spec, error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _remedy(spec: ModelSpec, error: BaseException) -> str:
    text = str(error).lower()
    if spec.source == "random":
        return "Correct model.config: its fields are those of the architecture's transformers config."
    if spec.source == "wheel":
        return f"Remove {cache_folder() / 'models'} to have it converted again, or install the package again."
    if "trust_remote_code" in text:
        return "If you trust its author, set model.trust_remote_code=true."
    if "gated" in text or "401" in text or "403" in text:
        return "Accept its licence on the hub and sign in with `hf auth login`."
    if Path(str(spec.path)).expanduser().is_dir():
        return "Check that the folder is complete and was written by save_pretrained."
    return (
        "Check the spelling and the network; without a network give a local folder, "
        "or use model=smollm2_135m, which comes from a Python package."
    )
