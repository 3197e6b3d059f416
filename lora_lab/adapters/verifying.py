"""Logits of a merged model against those of its base with the adapter beside it."""

from __future__ import annotations

from collections.abc import Sequence
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

TOLERANCE = {"float64": 1e-6, "float32": 1e-5, "bfloat16": 3e-2, "float16": 5e-3}
"""``|merged - unmerged| / |unmerged|`` over all logits (Frobenius norms) that rounding explains, by
the coarsest dtype that takes part: the base's, the adapter's, or the files'."""
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
    """Compare the model in ``merged`` with the base and adapter of ``reference``, on ``texts``.

    Both are loaded whole, one after another.
    Merged onto the original weights of a quantised base, they differ by what quantisation does, too.

    Raises:
        ModelError, CheckpointError: one of them cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    from lora_lab.models.loading import loading

    base = load_base(reference.model)
    ids = [torch.tensor([base.tokenizer(text)["input_ids"]]) for text in texts]
    attachment = None if reference.folder is None else load_adapter(reference.folder, base)
    dtypes = {dtype, reference.model.dtype}
    if attachment is not None:
        dtypes |= {str(one.dtype).removeprefix("torch.") for one in attachment.parameters().values()}
    before = [logits(base, attachment, one).double() for one in ids]
    del base, attachment
    with loading(reference.model):
        model: Any = AutoModelForCausalLM.from_pretrained(
            merged,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=reference.model.trust_remote_code,
            attn_implementation="sdpa" if dtype == "float64" else "eager",  # eager float64 has a NaN in its mask
        ).eval()
    with torch.no_grad():
        after = [model(input_ids=one, use_cache=False).logits.double() for one in ids]
    far = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
    size = sum(float(b.square().sum()) for b in before)
    same = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(after, before, strict=True)])
    coarse = max(TOLERANCE[name] for name in dtypes)
    return Agreement((far / size) ** 0.5 if size else 0.0, float(same.double().mean()), coarse)
