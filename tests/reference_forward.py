"""What an attachment's documentation says that it computes, in the plainest way: alone, padded, by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lora_lab.methods import Attachment, LowRank, RowPath
from lora_lab.models import BaseModel


def low_rank(factor: LowRank, x: Tensor, y: Tensor) -> Tensor:
    """A module's output ``y`` for ``x`` with the update of ``factor``."""
    A, B = factor.product()
    wide = x.to(A.dtype)
    return (y + wide @ A.T @ B.T * factor.scaling).to(y.dtype)


def rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


@contextmanager
def wired(base: BaseModel, attachment: Attachment, seed: int | None = None) -> Iterator[None]:
    """Within, the attachment's factors and paths act on every row of the base model."""

    def factor_hook(factor: LowRank) -> Any:
        return lambda module, inputs, output: low_rank(factor, inputs[0], output)

    def path_hooks(path: RowPath) -> tuple[Any, Any]:
        given: list[Tensor] = []

        def before(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            given.append(inputs[0])
            return (path.before(rows(inputs[0])).view_as(inputs[0]), *inputs[1:])

        def after(_: Any, inputs: Any, output: Tensor) -> Tensor:
            return path.after(rows(given.pop()), rows(output), seed).view_as(output)

        return before, after

    with ExitStack() as stack:
        for name, factor in attachment.factors.items():
            handle = base.model.get_submodule(name).register_forward_hook(factor_hook(factor))
            stack.callback(handle.remove)
        for name, path in attachment.paths.items():
            before, after = path_hooks(path)
            module = base.model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield


def logits(base: BaseModel, attachment: Attachment | None, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """``(n, t, V)`` logits of right-padded tokens ``(n, t)``."""
    mask = torch.ones_like(ids) if mask is None else mask
    if attachment is None:
        return base.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if attachment.solo is not None:
        return attachment.solo(ids, mask)
    with wired(base, attachment):
        if attachment.prompt is None:
            return base.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        words = base.model.get_input_embeddings()(ids)
        prompt = attachment.prompt().to(words.dtype).expand(len(ids), -1, -1)
        mask = torch.cat([mask.new_ones(prompt.shape[:2]), mask], dim=1)
        whole = base.model(inputs_embeds=torch.cat([prompt, words], dim=1), attention_mask=mask, use_cache=False)
        return whole.logits[:, prompt.shape[1] :]
