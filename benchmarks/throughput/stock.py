"""Stock PEFT on the resident base, as both peers use it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from lora_lab.models import BaseModel
from lora_lab.packing.inputs import Sequences
from lora_lab.spec import RunSpec

IGNORED = -100


@contextlib.contextmanager
def peft_model(base: BaseModel, spec: RunSpec) -> Iterator[Any]:
    """``get_peft_model`` on the base, seeded like a lane's adapter; the base's own modules come back after."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(spec.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.method.r,
        lora_alpha=spec.method.effective_alpha,
        lora_dropout=spec.method.dropout,
        use_rslora=spec.method.rslora,
        target_modules=sorted({name for role in spec.method.mask for name in base.roles[role]}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base.model, config)
    try:
        yield model
    finally:
        model.unload()


def padded(sequences: Sequences, pad: int) -> dict[str, torch.Tensor]:
    """``(n, t)`` ids, attention mask and labels, padded on the right to the longest of the batch."""
    width = max(len(ids) for ids, _ in sequences)
    ids = torch.full((len(sequences), width), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (tokens, supervised) in enumerate(sequences):
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)][torch.from_numpy(supervised)] = ids[row, : len(tokens)][torch.from_numpy(supervised)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
