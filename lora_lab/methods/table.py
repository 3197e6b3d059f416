"""The methods by name: how each is attached and counted, and taken over where PEFT loaded it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.methods.adalora import attach_adalora, count_adalora, loaded_adalora
from lora_lab.methods.attachment import Attachment
from lora_lab.methods.bitfit import attach_bitfit, count_bitfit
from lora_lab.methods.bottleneck import attach_bottleneck, count_bottleneck
from lora_lab.methods.full import attach_full, count_full
from lora_lab.methods.ia3 import attach_ia3, count_ia3, loaded_ia3
from lora_lab.methods.inits import Calibration
from lora_lab.methods.last_layers import attach_last_layers, count_last_layers
from lora_lab.methods.llama_adapter import attach_llama_adapter, count_llama_adapter, loaded_llama_adapter
from lora_lab.methods.lora import attach_lora, count_lora, loaded_lora
from lora_lab.methods.prefix_tuning import attach_prefix, count_prefix, loaded_prefix
from lora_lab.methods.prompt_tuning import (
    attach_p_tuning,
    attach_prompt_tuning,
    count_p_tuning,
    count_prompt_tuning,
    loaded_prompt,
)
from lora_lab.methods.vera import attach_vera, count_vera, loaded_vera
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


@dataclass(frozen=True)
class Method:
    """``attach(base, spec, seed, calibration)``, and ``count(base, spec)`` of its trainable parameters by formula."""

    attach: Callable[[BaseModel, MethodSpec, int, Calibration | None], Attachment]
    count: Callable[[BaseModel, MethodSpec], int]


TABLE: Mapping[str, Method] = {
    "lora": Method(attach_lora, count_lora),
    "adalora": Method(attach_adalora, count_adalora),
    "vera": Method(attach_vera, count_vera),
    "ia3": Method(attach_ia3, count_ia3),
    "bottleneck": Method(attach_bottleneck, count_bottleneck),
    "bitfit": Method(attach_bitfit, count_bitfit),
    "last_layers": Method(attach_last_layers, count_last_layers),
    "prompt_tuning": Method(attach_prompt_tuning, count_prompt_tuning),
    "p_tuning": Method(attach_p_tuning, count_p_tuning),
    "prefix_tuning": Method(attach_prefix, count_prefix),
    "p_tuning_v2": Method(attach_prefix, count_prefix),
    "llama_adapter": Method(attach_llama_adapter, count_llama_adapter),
    "full": Method(attach_full, count_full),
}
Loaded = Callable[[BaseModel, Any, str], Attachment]
"""An attachment (kept in this ``method.dtype``) from a base that PEFT's model of a saved adapter is wrapped around."""
PEFT_TYPES: Mapping[str, Loaded] = {
    "LORA": loaded_lora,
    "ADALORA": loaded_adalora,
    "VERA": loaded_vera,
    "IA3": loaded_ia3,
    "PROMPT_TUNING": loaded_prompt,
    "P_TUNING": loaded_prompt,
    "PREFIX_TUNING": loaded_prefix,
    "ADAPTION_PROMPT": loaded_llama_adapter,
}
"""By the names that PEFT has for them."""


def made(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """An attachment as its method begins it; what it is to begin with of other adapters is not in it yet."""
    found = TABLE[spec.name].attach(base, spec, seed, calibration)
    found.shards = base.shards
    return found
