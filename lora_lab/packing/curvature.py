"""The diagonal of a lane's Hessian, estimated by passes through the base that can be differentiated twice.

The packed step's own backward functions can be differentiated only once, so a lane goes through the base alone here,
without dropout, by plain differentiable torch, and attention takes its plain form, the only one with a second
derivative.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

from lora_lab.methods import Attachment
from lora_lab.models import BaseModel
from lora_lab.packing.inputs import Sequences, count_targets


def gauss_newton_bartlett(
    base: BaseModel, attachment: Attachment, batch: list[Sequences], generator: torch.Generator
) -> list[Tensor]:
    """``B g * g`` of the gradient ``g`` of the mean loss over ``B`` labels drawn from the model itself.

    Its expectation is the diagonal of the Gauss-Newton matrix (arXiv:2305.14342, algorithm 2).
    """
    parameters = list(attachment.parameters().values())
    targets = sum(map(count_targets, batch))
    gradient = [torch.zeros_like(p) for p in parameters]
    for sequences in batch:
        logits, _ = supervised_logits(base, attachment, sequences)
        labels = draw(logits.detach(), generator)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / targets
        torch._foreach_add_(gradient, _gradient(loss, parameters))
    return [targets * g * g for g in gradient]


def hutchinson(
    base: BaseModel, attachment: Attachment, batch: list[Sequences], generator: torch.Generator
) -> list[Tensor]:
    """``u * H u`` for a normal probe ``u`` and the exact Hessian ``H`` of the mean loss.

    Its expectation is the diagonal of ``H`` (arXiv:2305.14342, algorithm 1).
    """
    parameters = list(attachment.parameters().values())
    targets = sum(map(count_targets, batch))
    probes = [torch.empty_like(p).normal_(generator=generator) for p in parameters]
    product = [torch.zeros_like(p) for p in parameters]
    for sequences in batch:
        logits, labels = supervised_logits(base, attachment, sequences)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / targets
        gradient = _gradient(loss, parameters, create_graph=True)
        along = torch.stack([(g * u).sum() for g, u in zip(gradient, probes, strict=True)]).sum()
        torch._foreach_add_(product, _gradient(along, parameters))
    return [u * h for u, h in zip(probes, product, strict=True)]


def supervised_logits(base: BaseModel, attachment: Attachment, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """``(targets, vocabulary)`` logits of the supervised tokens in float32 at least, and their ``(targets,)`` labels.

    Sequences stand side by side, filled up to the longest with tokens that no real one sees. Differentiable as often as
    one likes.
    """
    model: Any = base.model
    ids, real, row, column, labels = _side_by_side(sequences, base.device)
    with sdpa_kernel(SDPBackend.MATH):
        if attachment.solo is not None:
            logits = attachment.solo(ids, real).flatten(0, 1).index_select(0, row * ids.shape[1] + column)
            return logits.to(torch.promote_types(logits.dtype, torch.float32)), labels
        with _attached(model, attachment):
            embedded = model.get_input_embeddings()(ids)
            before = 0
            if attachment.prompt is not None:
                prompt = attachment.prompt().to(embedded.dtype)
                before = len(prompt)
                embedded = torch.cat([prompt.expand(len(ids), -1, -1), embedded], 1)
            hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            places = row * hidden.shape[1] + before + column
            logits = model.get_output_embeddings()(hidden.flatten(0, 1).index_select(0, places))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    softcap = getattr(model.config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits, labels


def _side_by_side(sequences: Sequences, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(n, longest)`` ids and mask of what is real; row, column and label of every token before a target."""
    longest = max(len(ids) for ids, _ in sequences)
    with _disable_current_modes():  # where tokens lie is known, also where tensors have no data
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        real, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (tokens, supervised) in enumerate(sequences):
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            real[row, : len(tokens)] = 1
            wanted[row, : len(tokens) - 1] = torch.from_numpy(supervised[1:])
        rows, columns = wanted.nonzero(as_tuple=True)
        labels = ids.roll(-1, 1)[wanted]
        ids, real, rows, columns, labels = (t.to(device) for t in (ids, real, rows, columns, labels))
    return ids, real, rows, columns, labels


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """``(rows,)`` labels, each from its row's distribution; any label where a row is not finite."""
    chances = torch.softmax(logits, -1).nan_to_num(nan=1.0)
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)


def _gradient(of: Tensor, parameters: list[nn.Parameter], create_graph: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(of, parameters, create_graph=create_graph, materialize_grads=True))


@contextlib.contextmanager
def _attached(model: nn.Module, attachment: Attachment) -> Iterator[None]:
    """Within, what goes through the modules that ``attachment`` adapts takes its paths."""
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys((*attachment.factors, *attachment.paths)):
            module, hooks = model.get_submodule(name), _Hooks(attachment, name)
            stack.callback(module.register_forward_pre_hook(hooks.before).remove)
            stack.callback(module.register_forward_hook(hooks.after).remove)
        yield


class _Hooks:
    """What one module is given and what it gives, as :class:`~lora_lab.methods.Attachment` says."""

    def __init__(self, attachment: Attachment, name: str) -> None:
        self.factor, self.path = attachment.factors.get(name), attachment.paths.get(name)
        self.came: Tensor | None = None

    def before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The module's input, changed by a path."""
        (x,) = inputs
        if self.path is None:
            return inputs
        self.came = x.reshape(-1, x.shape[-1])
        return (self.path.before(self.came).to(x.dtype).view(x.shape),)

    def after(self, module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """The module's output, with the low-rank update added and then changed by a path."""
        if self.factor is not None:
            A, B = self.factor.product()
            y = (y + inputs[0].to(A.dtype) @ A.t() @ B.t() * self.factor.scaling).to(y.dtype)
        if self.path is None or self.came is None:
            return y
        came, self.came = self.came, None
        return self.path.after(came, y.reshape(-1, y.shape[-1]), None).to(y.dtype).view(y.shape)
