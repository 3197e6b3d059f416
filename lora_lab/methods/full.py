"""Full fine-tuning, the baseline: a copy of every parameter trains, in the model's dtype or in ``method.dtype``.

The resident base stays as it is, and the copy is used in its place by a functional call, so it runs alone. A head that
was tied to the embeddings is tied in the copy. It is saved as transformers saves a model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lora_lab.errors import MethodError
from lora_lab.files import write_text
from lora_lab.methods.attachment import PREFIX, Attachment
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import is_quantised
from lora_lab.models import BaseModel
from lora_lab.models.shards import Shards, part, whole
from lora_lab.spec import MethodSpec


@dataclass(eq=False)
class Full(Attachment):
    """An attachment that is a whole model."""

    weights_file: ClassVar[str] = "model.safetensors"
    config: Any = None

    def exported(self) -> dict[str, Tensor]:
        """See :class:`Attachment`."""
        return {name.removeprefix(PREFIX): parameter.detach() for name, parameter in self.own.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See :class:`Attachment`."""
        self.load_state_dict({f"{PREFIX}{name}": value for name, value in tensors.items()})

    def save(self, folder: Path, *, base_name: str) -> bool:
        """As a folder that ``AutoModelForCausalLM.from_pretrained`` reads; the tokenizer is the base's."""
        if self.shards is not None and not self.shards.first:
            return super().save(folder, base_name=base_name)
        write_text(folder / "config.json", self.config.to_json_string(use_diff=True))
        return super().save(folder, base_name=base_name)


@dataclass(eq=False)
class DividedFull(Full):
    """A whole model of whose every parameter this process trains a part: ``parts`` are what FSDP knows them by."""

    movable: ClassVar[bool] = False
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """See :class:`Attachment`."""
        return sum(part.numel() for part in self.parts.values())

    def collect(self) -> None:
        """See :class:`Attachment`. FSDP has added them already, to each process's part."""
        for name, mine in self.parts.items():
            if mine.grad is not None:
                self.own[name].grad, mine.grad = mine.grad.to_local(), None

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """See :class:`Attachment`."""
        assert self.shards is not None
        square = super().norm(gradients).double().square()  # of bfloat16 gradients, too
        self.shards.add([square])
        return square.sqrt()

    def gathered(self, tensors: Mapping[str, Tensor], owner: Callable[[str], str | None]) -> dict[str, Tensor]:
        """See :class:`Attachment`."""
        return {name: self._whole(tensor, owner(name)) for name, tensor in tensors.items()}

    def taken(self, tensors: Mapping[str, Tensor], owner: Callable[[str], str | None]) -> dict[str, Tensor]:
        """See :class:`Attachment`."""
        return {name: self._part(tensor, owner(name)) for name, tensor in tensors.items()}

    def exported(self) -> dict[str, Tensor]:
        """See :class:`Attachment`."""
        return {name.removeprefix(PREFIX): self._whole(value.detach(), name) for name, value in self.own.items()}

    def _whole(self, tensor: Tensor, name: str | None) -> Tensor:
        """All processes' ``tensor``, together shaped like parameter ``name``; on the CPU of the first, which writes it,
        and empty in the others."""
        if name is None or tensor.shape != self.own[name].shape:
            return tensor
        assert self.shards is not None
        together = whole(tensor, self.parts[name])
        return together.cpu() if self.shards.first else torch.empty(0)

    def _part(self, tensor: Tensor, name: str | None) -> Tensor:
        if name is None or tensor.shape != self.parts[name].shape:
            return tensor
        return part(tensor, self.parts[name])


def attach_full(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    model: Any = base.model
    names, tied = _parameters(base)
    if base.shards is not None:
        return _divided(base, spec, base.shards)
    dtype = model.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    copies: dict[str, Tensor] = {
        name: nn.Parameter(model.get_parameter(name).detach().to(dtype, copy=True)) for name in names
    }
    ties = {end: copies[start] for end, start in tied.items()}

    def solo(ids: Tensor, mask: Tensor) -> Tensor:
        given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        logits: Tensor = functional_call(model, copies | ties, (), given, tie_weights=False).logits
        return logits

    config = _config(model, type(model).__name__, dtype, tied=bool(tied))
    own = {f"{PREFIX}{name}": parameter for name, parameter in copies.items() if isinstance(parameter, nn.Parameter)}
    return Full(spec, packable=False, own=own, solo=solo, config=config)


def _divided(base: BaseModel, spec: MethodSpec, shards: Shards) -> Attachment:
    """The divided model itself trains, for nobody else uses it."""
    model: Any = base.model
    parts = {f"{PREFIX}{name}": parameter for name, parameter in model.named_parameters()}
    own = {name: nn.Parameter(part.detach().to_local()) for name, part in parts.items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    name = type(model).__name__.removeprefix("FSDP")  # what fully_shard puts before it
    config = _config(model, name, next(iter(own.values())).dtype, tied=tied)
    return DividedFull(spec, packable=False, own=own, config=config, shards=shards, parts=parts)


def _config(model: Any, name: str, dtype: torch.dtype, *, tied: bool) -> Any:
    """The config of the trained model, an architecture of transformers by ``name``."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings, config.dtype, config.architectures = tied, dtype, [name]
    return config


def count_full(base: BaseModel, spec: MethodSpec) -> int:
    """Every parameter of the model as it was published."""
    _parameters(base)
    return base.total_parameters


def _parameters(base: BaseModel) -> tuple[list[str], dict[str, str]]:
    """Names of the model's own parameters, and those that are others' (name of the copy -> of the original)."""
    quantised = [
        name for name, module in base.model.named_modules() if hasattr(module, "weight") and is_quantised(module)
    ]
    if quantised:
        raise MethodError(
            f"method.name=full cannot train quantised weights ({quantised[0]}). Choose model.quantization=none, or "
            "method.name=lora."
        )
    names = [name for name, _ in base.model.named_parameters()]
    if not getattr(base.model, "_lora_lab_untied", False):
        return names, {}
    weights = {id(parameter): name for name, parameter in base.model.named_parameters()}
    head = weights[id(base.model.get_output_embeddings().weight)]
    words = weights[id(base.model.get_input_embeddings().weight)]
    return [name for name in names if name != head], {head: words}
