"""Saved adapters back as attachments: those of :meth:`Attachment.save`, and stock PEFT's from elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_lab.errors import CheckpointError, MethodError, SpecError
from lora_lab.files import read_json
from lora_lab.methods.attachment import ADAPTER_CONFIG, ADAPTER_WEIGHTS, METHOD_CONFIG, Attachment
from lora_lab.methods.injection import untouched
from lora_lab.methods.table import PEFT_TYPES, Loaded, made
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec, from_tree

_BESIDE = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication", "lora_bias")
"""What an adapter's config may hold beside the method itself, and an attachment cannot."""
_MUTATED = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations after which PEFT's base has other weights."""


def load(folder: Path, base: BaseModel) -> Attachment:
    """The adapter saved in ``folder``, ready for ``base``, which is left as it was.

    Adapters of stock PEFT are loaded by PEFT itself, so that every pattern and option of its configs means what it
    means there. ``spec`` of what comes back says what its fields can say.

    Raises:
        CheckpointError: files that are missing, torn or do not fit the base.
        MethodError: a pickle, or a method or option that lora-lab does not have.
    """
    if (folder / METHOD_CONFIG).is_file():
        return _own(folder, base)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: no adapter is here; {ADAPTER_CONFIG} (PEFT's) and {METHOD_CONFIG} (lora-lab's) are missing. "
            "Give the folder that they are in."
        )
    tree, saved = read_json(folder / ADAPTER_CONFIG), _weights(folder)
    kind = str(tree.get("peft_type"))
    if kind not in PEFT_TYPES:
        raise MethodError(
            f"{folder / ADAPTER_CONFIG}: peft_type {kind!r} is no method of lora-lab, which knows "
            f"{', '.join(PEFT_TYPES)}. Use PEFT itself for it."
        )
    beside = [name for name in _BESIDE if tree.get(name)]
    beside += ["bias"] if tree.get("bias", "none") != "none" else []
    if beside:
        raise MethodError(
            f"{folder / ADAPTER_CONFIG}: {', '.join(beside)} is set, and an adapter with more than its own "
            "parameters cannot share a base model. Merge it into its base with PEFT and load that."
        )
    if str(tree.get("init_lora_weights")).startswith(_MUTATED):
        raise MethodError(
            f"{folder / ADAPTER_CONFIG}: init_lora_weights={tree['init_lora_weights']!r} means another base "
            "weight than the model's own. Save it as an ordinary LoRA: PEFT's save_pretrained(…, "
            "path_initial_model_for_weight_conversion=…)."
        )
    narrow = all(value.dtype == torch.bfloat16 for value in saved.values())
    attachment = _stock(folder, base, PEFT_TYPES[kind], "bfloat16" if narrow else "auto")
    differing = sorted(attachment.exported().keys() ^ saved.keys())
    if differing:
        raise CheckpointError(
            f"{folder / ADAPTER_WEIGHTS}: {len(differing)} tensors are missing or fit nothing in {base.spec.name}: "
            f"{', '.join(differing[:3])}. Load it on the base model it was trained on."
        )
    return attachment


def _stock(folder: Path, base: BaseModel, taken: Loaded, dtype: str) -> Attachment:
    from peft import PeftConfig, PeftModel

    with untouched(base.model):
        try:
            config = PeftConfig.from_pretrained(str(folder))
            if hasattr(config, "init_lora_weights"):
                config.init_lora_weights = True  # values come from the file; other ones would look at the base
            wrapped = PeftModel.from_pretrained(base.model, str(folder), config=config, torch_device=str(base.device))
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            raise CheckpointError(
                f"{folder}: PEFT cannot load this adapter on {base.spec.name}: {said or repr(error)} "
                "Load it on the base model it was trained on."
            ) from error
        return taken(base, wrapped, dtype)


def _own(folder: Path, base: BaseModel) -> Attachment:
    tree = read_json(folder / METHOD_CONFIG)
    try:
        spec = from_tree(MethodSpec, tree["method"], "method")
    except (KeyError, SpecError) as error:
        raise CheckpointError(f"{folder / METHOD_CONFIG}: {error} Save the adapter again.") from error
    attachment = made(base, spec, seed=0)
    attachment.restore(_weights(folder, attachment.weights_file))
    return attachment


def _weights(folder: Path, file_name: str = ADAPTER_WEIGHTS) -> dict[str, Tensor]:
    path = folder / file_name
    if not path.is_file():
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        if pickles:
            raise MethodError(
                f"{folder / pickles[0]} is a pickle, which can run code when it is read, and is refused. If you trust "
                "it, convert it: torch.load(…, weights_only=True), then safetensors.torch.save_file to "
                f"{ADAPTER_WEIGHTS}."
            )
        raise CheckpointError(f"{folder}: {file_name} is missing. Copy the whole adapter.")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}). Copy the adapter again.") from error
