"""What an adapter makes of the weights it stands on, a block of output rows at a time.

An :class:`~lora_lab.methods.Attachment` acts on activations; where what it does is a linear map of them, it is a change
of the module's weight ``W (out, in)`` and bias ``(out,)``:

====================  ==============================================
LoRA, AdaLoRA         ``W + s B A`` (PiSSA, OLoRA: ``+ s (B A - B0 A0)``)
DoRA                  ``m V / |V|`` with ``V = W + s B A``, row norms
VeRA                  ``W + b (B (d A))``
(IA)^3                rows (attention) or columns (feed-forward) scaled; the bias with the rows
BitFit                bias + delta, of a norm, too
last layers           ``W + delta``, bias + delta
full fine-tuning      the trained tensor itself
====================  ==============================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_lab.errors import MethodError
from lora_lab.methods import Attachment, LowRank, RowPath
from lora_lab.methods.bitfit import Bias
from lora_lab.methods.dora import Magnitude
from lora_lab.methods.ia3 import Scale
from lora_lab.methods.last_layers import Delta
from lora_lab.methods.vera import SharedLowRank

_MERGED = (Magnitude, Bias, Scale, Delta, SharedLowRank)


@dataclass(frozen=True, eq=False)
class Change:
    """What happens to one module."""

    factor: LowRank | None = None
    path: RowPath | None = None

    @torch.no_grad()
    def weight(self, rows: Tensor, start: int) -> Tensor:
        """Merged ``rows (n, in)``, which are the weight's from row ``start`` on; computed and given in their dtype.

        A norm's weight, ``(n,)``, comes back as it was.
        """
        if rows.dim() == 1:
            return rows
        part, dtype = slice(start, start + len(rows)), rows.dtype
        if self.factor is not None:
            rows = rows + _update(self.factor, part, dtype)
        match self.path:
            case Magnitude(magnitude=magnitude):
                norms = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(dtype).tiny)
                scales: Tensor = magnitude.detach()[part].to(dtype) / norms
                return rows * scales.unsqueeze(1)
            case Scale(scale=scale, feedforward=True):
                return rows * scale.detach().to(dtype).view(1, -1)
            case Scale(scale=scale):
                return rows * scale.detach().to(dtype).view(-1, 1)[part]
            case Delta(weight=delta):
                return rows + delta.detach()[part].to(dtype)
            case SharedLowRank(b=b, d=d, A=A, B=B):
                left = b.detach()[part].to(dtype).unsqueeze(1) * B[part].to(dtype)
                return rows + (left * d.detach().to(dtype)) @ A.to(dtype)
        return rows

    @torch.no_grad()
    def without(self, rows: Tensor, start: int) -> Tensor:
        """``rows`` of a merged weight with what was added taken off; what was scaled stays as it is."""
        match self.path:
            case Magnitude() | Scale():
                return rows
        zeros = torch.zeros_like(rows)
        return rows - self.weight(zeros, start)

    @torch.no_grad()
    def bias(self, bias: Tensor) -> Tensor:
        """The merged ``bias (out,)``."""
        match self.path:
            case Bias(delta=delta):
                return bias + delta.detach().to(bias.dtype)
            case Delta(bias=nn.Parameter() as delta):
                return bias + delta.detach().to(bias.dtype)
            case Scale(scale=scale, feedforward=False):
                return bias * scale.detach().to(bias.dtype).view(-1)
        return bias

    @property
    def alters_weight(self) -> bool:
        """Whether the weight is another one afterwards."""
        return self.factor is not None or not isinstance(self.path, Bias)

    def alters_bias(self, has_bias: bool) -> bool:
        """Whether the bias is another one afterwards; a module that has none may get one."""
        if isinstance(self.path, Bias):
            return True
        return has_bias and isinstance(self.path, (Delta, Scale))


def _update(factor: LowRank, part: slice, dtype: torch.dtype) -> Tensor:
    A, B = (one.detach().to(dtype) for one in factor.product())
    return factor.scaling * (B[part] @ A)


def changes(attachment: Attachment, name: str) -> dict[str, Change]:
    """The changes of an attachment (``name`` in messages) by full module name.

    Raises:
        MethodError: a method that is no change of weights.
    """
    strange = next((path for path in attachment.paths.values() if not isinstance(path, _MERGED)), None)
    if strange is not None or attachment.prompt is not None or attachment.solo is not None:
        raise MethodError(
            f"{name}: {attachment.spec.name} is no change of the base model's weights, so it cannot be merged into "
            "them. Serve it beside the base: the adapter's own files are complete."
        )
    modules = attachment.factors | attachment.paths
    return {module: Change(attachment.factors.get(module), attachment.paths.get(module)) for module in modules}


def rows_at_once(shape: tuple[int, ...], numbers: int = 1 << 18) -> int:
    """Rows of a tensor of ``shape`` in a block of about ``numbers`` numbers (2 MB in float64)."""
    width = shape[1] if len(shape) > 1 else 1
    return max(1, numbers // max(1, width))
