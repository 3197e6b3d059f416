"""LLaMA-Adapter (arXiv:2303.16199): trained tokens that the top layers attend to, behind gates that are zero at first.

PEFT has it as ``AdaptionPrompt`` for Llama-, Mistral- and GPT-2-like models. It computes a second attention with the
layer's own projections inside the attention module, so it runs alone: the wrapped modules stand in the model only
while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lora_lab.errors import MethodError
from lora_lab.methods.attachment import PREFIX, Attachment
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import ADAPTER, untouched
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


def attach_llama_adapter(
    base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None
) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    from peft import AdaptionPromptConfig
    from peft.tuners.adaption_prompt import AdaptionPromptModel

    config = AdaptionPromptConfig(
        task_type="CAUSAL_LM", adapter_len=spec.virtual_tokens, adapter_layers=_top_layers(base, spec)
    )
    with untouched(base.model, seed):
        AdaptionPromptModel(base.model, {ADAPTER: config}, ADAPTER)
        return _made(base, spec, config)


def count_llama_adapter(base: BaseModel, spec: MethodSpec) -> int:
    """``n d + 1`` a layer."""
    return int(_top_layers(base, spec) * (spec.virtual_tokens * base.model.config.hidden_size + 1))


def loaded_llama_adapter(base: BaseModel, wrapped: Any, dtype: str) -> Attachment:
    """The attachment of an adapter that PEFT has loaded around ``base.model``."""
    config = wrapped.peft_config[ADAPTER]
    spec = MethodSpec("llama_adapter", virtual_tokens=config.adapter_len, top_layers=config.adapter_layers)
    return _made(base, spec, config)


def _top_layers(base: BaseModel, spec: MethodSpec) -> int:
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

    kind, layers = base.model.config.model_type, int(base.model.config.num_hidden_layers)
    if kind not in TRANSFORMERS_MODEL_CONFIG:
        raise MethodError(
            f"method.name=llama_adapter: PEFT has it for {', '.join(TRANSFORMERS_MODEL_CONFIG)} models, and "
            f"{base.spec.name} is {kind}. Choose method.name=prefix_tuning, which is near to it."
        )
    if (spec.top_layers or 1) > layers:
        raise MethodError(
            f"method.top_layers={spec.top_layers}: {base.spec.name} has {layers} layers. Choose as many at most."
        )
    return spec.top_layers or layers


def _made(base: BaseModel, spec: MethodSpec, config: Any) -> Attachment:
    """From the wrapped attention modules that are in the model now."""
    model: Any = base.model
    wrapped = {name: module for name, module in model.named_modules() if hasattr(module, "adaption_prompt")}
    own: dict[str, nn.Parameter] = {}
    for name, module in wrapped.items():
        for local in ("adaption_prompt", "adaption_gate"):
            own[f"{PREFIX}{name}.{local}"] = getattr(module, local).requires_grad_(True)

    @contextmanager
    def inserted() -> Iterator[None]:
        places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in wrapped]
        try:
            for (parent, child), module in zip(places, wrapped.values(), strict=True):
                setattr(parent, child, module)
            yield
        finally:
            for (parent, child), module in zip(places, wrapped.values(), strict=True):
                setattr(parent, child, module.model)

    def solo(ids: Tensor, mask: Tensor) -> Tensor:
        with inserted():
            logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return logits

    return Attachment(spec, packable=False, own=own, solo=solo, peft_config=config)
