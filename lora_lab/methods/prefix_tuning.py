"""Trained keys and values that every layer's attention sees before the tokens' own.

``prefix_tuning`` (arXiv:2101.00190) makes them by an MLP from one embedding a virtual token; ``p_tuning_v2``
(arXiv:2110.07602) trains them directly. PEFT has both as one method. They enter attention in every layer, as a cache
does, which a packed forward has no place for: it runs alone, through PEFT's own model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_lab.methods.attachment import Attachment
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import ADAPTER, untouched
from lora_lab.methods.prompt_tuning import ENCODER
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


@dataclass(eq=False)
class Prefix(Attachment):
    """An attachment that is saved as ``prompt_embeddings (n, 2 layers d_kv)``, whatever makes them."""

    wrapped: Any = None

    def exported(self) -> dict[str, Tensor]:
        """See :class:`Attachment`."""
        if self.wrapped.peft_config[ADAPTER].inference_mode:
            return {"prompt_embeddings": self.wrapped.prompt_encoder[ADAPTER].embedding.weight.detach()}
        with torch.no_grad():
            return {"prompt_embeddings": self.wrapped.get_prompt_embedding_to_save(ADAPTER)}


def attach_prefix(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    from peft import PeftModelForCausalLM, PrefixTuningConfig

    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=spec.virtual_tokens,
        prefix_projection=spec.name == "prefix_tuning",
        encoder_hidden_size=spec.encoder_size or base.model.config.hidden_size,
    )
    with untouched(base.model, seed):
        return _made(spec, PeftModelForCausalLM(base.model, config), config)


def count_prefix(base: BaseModel, spec: MethodSpec) -> int:
    """``2 layers n d_kv`` directly; by the MLP, ``n d_kv`` and its two layers."""
    config = base.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    d = head * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    out = 2 * config.num_hidden_layers * d
    if spec.name == "p_tuning_v2":
        return int(spec.virtual_tokens * out)
    h = spec.encoder_size or config.hidden_size
    return int(spec.virtual_tokens * d + (d + 1) * h + (h + 1) * out)


def loaded_prefix(base: BaseModel, wrapped: Any, dtype: str) -> Attachment:
    """The attachment of a prefix that PEFT has loaded: the keys and values, also where an MLP once made them."""
    config = wrapped.peft_config[ADAPTER]
    return _made(MethodSpec("p_tuning_v2", virtual_tokens=config.num_virtual_tokens), wrapped, config)


def _made(spec: MethodSpec, wrapped: Any, config: Any) -> Prefix:
    encoder = wrapped.prompt_encoder[ADAPTER].requires_grad_(True)

    def solo(ids: Tensor, mask: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # PEFT 0.21 hands the prefix over by a name that transformers 5.24 calls otherwise, and will drop
            warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
            logits: Tensor = wrapped(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    own = {f"{ENCODER}{name}": parameter for name, parameter in encoder.named_parameters()}
    return Prefix(spec, packable=False, own=own, solo=solo, peft_config=config, wrapped=wrapped)
