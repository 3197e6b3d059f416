"""The methods by name: one function each, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lora_lab.methods.attachment import Attachment
from lora_lab.methods.lora import attach_lora
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec

_METHODS: Mapping[str, Callable[[BaseModel, MethodSpec, int], Attachment]] = {"lora": attach_lora}


def attach(base: BaseModel, spec: MethodSpec, seed: int) -> Attachment:
    """Make the trainable parameters of ``spec`` for ``base``, as stock PEFT draws them after ``manual_seed(seed)``.

    The base is left exactly as it was (modules, hooks, weights, RNG state), so any number of attachments can
    belong to one resident base, also while hooks of other attachments are installed on it.

    Raises:
        MethodError: a role or layer that matches no module.
        ModelError: a mask that splits a fused matrix.
    """
    return _METHODS[spec.name](base, spec, seed)
