"""Logits of a merged model against those of its base with the adapter beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_lab.adapters.references import Reference
from lora_lab.methods import Attachment
from lora_lab.methods import load as load_adapter
from lora_lab.models import BaseModel
from lora_lab.models import load as load_base
from lora_lab.packing.paths import Mount
from lora_lab.packing.stacks import Share

COMPUTED = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""``|merged - unmerged| / |unmerged|`` over all logits (Frobenius norms) that computing in a dtype explains."""
ROUNDINGS = 3.0
"""How many times what one rounding of the merged weights does to the logits may be seen; two draws of it differ by
some tens of percent, a wrong merge by the whole update."""
TEXTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Question: What is 17 + 25?\nAnswer:",
    "Once upon a time there was a",
)


@dataclass(frozen=True)
class Agreement:
    """``difference`` is relative (Frobenius norms), ``same`` the share of positions with the same arg-max."""

    difference: float
    same: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference."""
        return self.difference <= self.tolerance


def logits(base: BaseModel, attachment: Attachment | None, ids: Tensor) -> Tensor:
    """``(n, t, V)`` of ``ids (n, t)`` on ``base`` with ``attachment`` beside it, through the packed forward."""
    if attachment is not None and attachment.solo is not None:
        with torch.no_grad():
            return attachment.solo(ids, torch.ones_like(ids))
    mount = Mount(base)
    if attachment is not None:
        mount.mount(attachment)
    try:
        with torch.no_grad(), mount.shares([Share(attachment, 0, ids.numel())]):
            found: Tensor = base.model(input_ids=ids, use_cache=False).logits
    finally:
        mount.unmount()
    return found


def verify(reference: Reference, merged: Path, dtype: str, *, texts: Sequence[str] = TEXTS) -> Agreement:
    """Compare the model in ``merged``, whose files are ``dtype``, with the base and adapter of ``reference``.

    Both are loaded whole, one after another, and compute ``texts`` in float32 at least, so that what is left is the
    rounding of merged weights to ``dtype``. How much that explains is measured: the merged weights are moved by as
    much as rounding moves them, at random, and the logits looked at again. A quantised base computes in its dtype.
    Merged onto the original weights of a quantised base, they differ by what quantisation does, too.

    Raises:
        ModelError, CheckpointError: one of them cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    from lora_lab.models.loading import loading

    base = load_base(reference.model)
    ids = [torch.tensor([base.tokenizer(text)["input_ids"]]) for text in texts]
    attachment = None if reference.folder is None else load_adapter(reference.folder, base)
    modules = frozenset[str]() if attachment is None else frozenset((*attachment.factors, *attachment.paths))
    computed = getattr(torch, reference.model.dtype)
    if reference.model.quantization == "none" and computed.itemsize < 4:
        computed = torch.float32
        base.model.to(computed)
    if attachment is not None:
        for one in attachment.parameters().values():
            one.data = one.data.to(torch.promote_types(one.dtype, computed))
    before = [logits(base, attachment, one).double() for one in ids]
    del base, attachment
    stored = getattr(torch, dtype)
    with loading(reference.model):
        model: Any = AutoModelForCausalLM.from_pretrained(
            merged,
            dtype=stored,
            local_files_only=True,
            trust_remote_code=reference.model.trust_remote_code,
            attn_implementation="sdpa" if dtype == "float64" else "eager",  # eager float64 has a NaN in its mask
        ).eval()
    if stored.itemsize < 4:
        model.float()

    def after() -> list[Tensor]:
        with torch.no_grad():
            return [model(input_ids=one, use_cache=False).logits.double() for one in ids]

    found = after()
    _round_again(model, modules, stored)
    return Agreement(
        _apart(found, before),
        float(
            torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(found, before, strict=True)])
            .double()
            .mean()
        ),
        max(COMPUTED[computed], COMPUTED[next(model.parameters()).dtype]) + ROUNDINGS * _apart(after(), found),
    )


def _apart(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    far = sum(float((a - b).square().sum()) for a, b in zip(some, others, strict=True))
    size = sum(float(b.square().sum()) for b in others)
    return (far / size) ** 0.5 if size else 0.0


@torch.no_grad()
def _round_again(model: Any, modules: Collection[str], dtype: torch.dtype, seed: int = 0) -> None:
    """Move the weights of ``modules`` (none: of all) by a uniform share of the half unit that rounding to ``dtype``
    leaves open."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if not modules or name.rpartition(".")[0] in modules:
            _, exponent = torch.frexp(weight.float())
            unit = torch.ldexp(torch.full_like(weight, torch.finfo(dtype).eps), exponent - 1) * (weight != 0)
            weight.add_(unit * (torch.rand(weight.shape, generator=generator, dtype=weight.dtype) - 0.5))
