"""Virtual tokens that are trained and stand before every sequence: soft prompts and P-tuning.

``prompt_tuning`` (arXiv:2104.08691) trains the tokens' embeddings themselves; ``p_tuning`` (arXiv:2103.10385) trains an
encoder, an MLP or a bidirectional LSTM, that makes them. What is saved are the embeddings, in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.methods.attachment import Attachment
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import ADAPTER, untouched
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec

ENCODER = "prompt_encoder."
"""What stands before the names of an encoder's parameters."""


@dataclass(eq=False)
class Prompt(Attachment):
    """An attachment that is saved as ``prompt_embeddings (n, d)``, whatever makes them."""

    def exported(self) -> dict[str, Tensor]:
        """See :class:`Attachment`."""
        assert self.prompt is not None
        with torch.no_grad():
            return {"prompt_embeddings": self.prompt().detach()}


def attach_prompt_tuning(
    base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None
) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    from peft import PromptTuningConfig

    init = {"vocab": "SAMPLE_VOCAB", "random": "RANDOM", "text": "RANDOM"}[spec.prompt_init]
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=spec.virtual_tokens, prompt_tuning_init=init)
    attachment, encoder = _encoded(base, spec, seed, config)
    if spec.prompt_init == "text":
        ids = base.tokenizer(spec.prompt_text)["input_ids"]
        repeated = torch.tensor(ids * spec.virtual_tokens, device=base.device)[: spec.virtual_tokens]
        with torch.no_grad():
            encoder.embedding.weight.copy_(base.model.get_input_embeddings()(repeated))
    return attachment


def attach_p_tuning(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    from peft import PromptEncoderConfig

    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=spec.virtual_tokens,
        encoder_reparameterization_type=spec.encoder.upper(),
        encoder_hidden_size=spec.encoder_size or base.model.config.hidden_size,
    )
    return _encoded(base, spec, seed, config)[0]


def count_prompt_tuning(base: BaseModel, spec: MethodSpec) -> int:
    """``n d``."""
    return int(spec.virtual_tokens * base.model.config.hidden_size)


def count_p_tuning(base: BaseModel, spec: MethodSpec) -> int:
    """``n d`` and the encoder: three layers of an MLP, or two of a bidirectional LSTM and two of an MLP."""
    d = int(base.model.config.hidden_size)
    h = spec.encoder_size or d
    if spec.encoder == "mlp":
        return spec.virtual_tokens * d + (d + 1) * h + (h + 1) * h + (h + 1) * d
    lstm = 2 * 4 * h * (d + h + 2) + 2 * 4 * h * (2 * h + h + 2)
    return spec.virtual_tokens * d + lstm + (2 * h + 1) * 2 * h + (2 * h + 1) * d


def loaded_prompt(base: BaseModel, wrapped: Any, dtype: str) -> Attachment:
    """The attachment of a prompt that PEFT has loaded: the embeddings, also where an encoder once made them."""
    config = wrapped.peft_config[ADAPTER]
    embeddings = nn.Parameter(wrapped.prompt_encoder[ADAPTER].embedding.weight.detach().clone())
    spec = MethodSpec("prompt_tuning", virtual_tokens=config.num_virtual_tokens)
    own = {f"{ENCODER}embedding.weight": embeddings}
    return Prompt(spec, own=own, prompt=lambda: embeddings, peft_config=config)


def _encoded(base: BaseModel, spec: MethodSpec, seed: int, config: Any) -> tuple[Prompt, Any]:
    from peft import PeftModelForCausalLM

    with untouched(base.model, seed):
        encoder = PeftModelForCausalLM(base.model, config).prompt_encoder[ADAPTER]
    indices = torch.arange(spec.virtual_tokens, device=base.device)
    own = {f"{ENCODER}{name}": parameter for name, parameter in encoder.named_parameters()}
    return Prompt(spec, own=own, prompt=lambda: encoder(indices), peft_config=config), encoder
