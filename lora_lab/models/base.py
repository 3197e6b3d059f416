"""A base model in memory: frozen, in evaluation mode, with its head untied and its roles named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_lab.errors import ModelError
from lora_lab.models.loading import loading
from lora_lab.models.prequantised import load_saved
from lora_lab.models.quantised import original_size, quantise, steady
from lora_lab.models.roles import Roles, role_modules
from lora_lab.models.shards import Shards
from lora_lab.models.shared import load_shared, second_embeddings, shared_file
from lora_lab.models.sources import config_of
from lora_lab.models.tokenizer import load_tokenizer
from lora_lab.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(eq=False)
class BaseModel:
    """A frozen, resident base model.

    ``model`` has no parameter that requires a gradient, is in evaluation mode, and its head shares nothing with
    its input embeddings. ``roles`` maps each role it has to full module names. With ``shards`` this process holds a
    part of the weights, which train where the run is full fine-tuning, and the head is tied as it was published.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec
    roles: Roles
    device: torch.device
    shards: Shards | None = None

    @property
    def total_parameters(self) -> int:
        """Parameters of the original model: a head that was tied counts once."""
        return total_parameters(self.model)


def load(spec: ModelSpec, device: str = "cpu", shards: Shards | None = None) -> BaseModel:
    """Load a base model, its tokenizer and its roles onto ``device`` (``cpu``, ``cuda``, ``cuda:N``).

    With ``shards``, all processes of which have to call this, it is divided from the memory of the machine, where it is
    once for all of them.

    A ``wheel`` model is prepared first. Weights are ``spec.dtype``, those of linear maps quantised as ``spec`` says
    (:mod:`lora_lab.models.quantised`); buffers (rotary frequencies) keep the float32 they are made in. On a CPU saved
    weights that are not quantised are in memory once for all processes of the machine (:mod:`lora_lab.models.shared`).
    Attention is the eager one on a CPU, where it is faster at short lengths, and SDPA elsewhere.

    Raises:
        ModelError: anything about the model, tokenizer or roles that cannot be used, or a device that is not there.
        OutOfMemory: the device has too little memory for it.
    """
    where = _device(device)
    tokenizer = load_tokenizer(spec)
    first = torch.device("cpu") if shards is not None else where
    file = shared_file(spec) if _shareable(spec, first) else None
    if file is not None:
        model = load_shared(spec, file)
    else:
        model = _random(spec, first) if spec.source == "random" else load_saved(spec, first)
    if spec.quantization != "none":
        steady(model, spec)
    untie(model, None if file is None else second_embeddings(model, file))
    model.requires_grad_(False)
    model.eval()
    _choose_attention(model, where)
    if spec.source == "random":
        for config in (model.config, model.generation_config):
            config.pad_token_id = tokenizer.pad_token_id
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = tokenizer.eos_token_id
    roles = role_modules(model, spec)
    if shards is not None:
        shards.divide(model, where)
    return BaseModel(model, tokenizer, spec, roles, where, shards)


def load_meta(spec: ModelSpec, device: str = "cpu") -> PreTrainedModel:
    """The model on the meta device: shapes and dtypes as :func:`load` gives them, and no memory.

    Needs only a config: ``spec.config`` if given, else the one in its files. ``device`` is the one whose
    attention implementation is wanted; it need not exist here.

    Raises:
        ModelError: the config cannot be read.
    """
    from transformers import AutoModelForCausalLM

    config = config_of(spec)
    with loading(spec), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, spec.dtype), trust_remote_code=spec.trust_remote_code
        )
    untie(model)
    model.requires_grad_(False)
    model.eval()
    _choose_attention(model, torch.device(device))
    return model


def untie(model: PreTrainedModel, copy: Tensor | None = None) -> bool:
    """Give the head a weight of its own, if it shares the input embeddings'. True when it did.

    An adapter on a tied head cannot be merged without changing the input embeddings too; a copy keeps the
    model's function. ``copy`` is one that is there already. ``config.tie_word_embeddings`` becomes False either way.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    if tied:
        weight = head.weight
        own = weight.detach().clone() if copy is None else copy
        head.weight = nn.Parameter(own, requires_grad=weight.requires_grad)
        model._lora_lab_untied = True
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    return tied


def total_parameters(model: PreTrainedModel) -> int:
    """Parameters of the model as it was published: the copy that :func:`untie` made is not counted.

    Quantised weights count as many as they were.
    """
    count = sum(original_size(parameter) for parameter in model.parameters())
    if getattr(model, "_lora_lab_untied", False):
        count -= model.get_output_embeddings().weight.numel()
    return count


def _shareable(spec: ModelSpec, first: torch.device) -> bool:
    return first.type == "cpu" and spec.source != "random" and spec.quantization == "none"


def _random(spec: ModelSpec, device: torch.device) -> Any:
    """Drawn in float32 and then rounded, so that one ``init_seed`` gives one model in every dtype."""
    from transformers import AutoModelForCausalLM

    config = config_of(spec)
    with loading(spec), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.init_seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, spec.dtype))
    model.config.dtype = getattr(torch, spec.dtype)
    with loading(spec):
        model.to(device)
    if spec.quantization != "none":
        quantise(model, spec)
    return model


def _choose_attention(model: Any, device: torch.device) -> None:
    """SDPA where it pays, and for float64, whose mask becomes infinite (a NaN) in the eager softmax in float32."""
    pays = device.type != "cpu" or model.config.dtype == torch.float64
    model.set_attn_implementation("sdpa" if pays and getattr(model, "_supports_sdpa", False) else "eager")


def _device(device: str) -> torch.device:
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device={device}: not a device. Use cpu, cuda or cuda:N.") from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device={device}: this machine shows {torch.cuda.device_count()} CUDA devices. "
            "Use device=auto or device=cpu."
        )
    return where
