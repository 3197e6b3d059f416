"""VeRA (arXiv:2310.11454): one pair of random, frozen matrices for all modules, and two trained vectors a module.

A module's update is ``lambda_b * (B (lambda_d * (A x)))`` with ``A (r, in)`` and ``B (out, r)`` cut from the shared
pair, which ``method.projection_seed`` draws. ``lambda_b`` starts at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import linear

from lora_lab.methods.attachment import Attachment, RowPath, dropped
from lora_lab.methods.inits import Calibration
from lora_lab.methods.injection import ADAPTER, any_conv1d, injected, kept, shortest, untouched
from lora_lab.methods.targets import linear_shape, modules_of, roles_of, target_modules
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


class SharedLowRank(RowPath):
    """``d (r,)`` and ``b (out,)`` train; ``A (r, in)`` and ``B (out, r)`` are views of the shared pair."""

    multiplies_trained: ClassVar[bool] = False

    def __init__(self, b: nn.Parameter, d: nn.Parameter, A: Tensor, B: Tensor, dropout: float) -> None:
        self.b, self.d, self.A, self.B, self.dropout = b, d, A, B, dropout

    def parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`RowPath`."""
        return {"vera_lambda_b": self.b, "vera_lambda_d": self.d}

    def after(self, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """See :class:`RowPath`."""
        rows = dropped(x.to(self.d.dtype), self.dropout, seed)
        return (y + self.b * linear(self.d * linear(rows, self.A), self.B)).to(y.dtype)

    def multiplied(self) -> int:
        """See :class:`RowPath`."""
        return self.A.numel() + self.B.numel()


@dataclass(eq=False)
class Vera(Attachment):
    """An attachment that is saved with the shared pair, as PEFT does."""

    shared: dict[str, Tensor] = field(default_factory=dict)

    def exported(self) -> dict[str, Tensor]:
        """See :class:`Attachment`."""
        return super().exported() | self.shared


def attach_vera(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    from peft import VeraConfig
    from peft.tuners.vera import VeraModel

    modules = modules_of(base.model, target_modules(base.roles, spec, base.spec.name))
    if not modules:
        return Attachment(spec)
    config = VeraConfig(
        task_type="CAUSAL_LM",
        r=spec.r,
        target_modules=shortest(list(modules), base.model),
        projection_prng_key=spec.projection_seed,
        vera_dropout=spec.dropout,
        d_initial=spec.d_initial,
        fan_in_fan_out=any_conv1d(modules),
    )
    with untouched(base.model, seed):
        layers = injected(base.model, VeraModel, config, list(modules))
        return _made(layers, spec, config)


def count_vera(base: BaseModel, spec: MethodSpec) -> int:
    """``r + out`` a module."""
    modules = modules_of(base.model, target_modules(base.roles, spec, base.spec.name))
    return sum(spec.r + linear_shape(module)[1] for module in modules.values())


def loaded_vera(base: BaseModel, wrapped: Any, dtype: str) -> Attachment:
    """The attachment of an adapter that PEFT has loaded around ``base.model``."""
    from peft.tuners.vera import VeraLayer

    config = wrapped.peft_config[ADAPTER]
    layers = {name: layer for name, layer in base.model.named_modules() if isinstance(layer, VeraLayer)}
    spec = MethodSpec(
        "vera",
        r=config.r,
        roles=roles_of(base.roles, list(layers)),
        dropout=config.vera_dropout,
        dtype=dtype,
        d_initial=config.d_initial,
        projection_seed=config.projection_prng_key,
    )
    return _made(layers, spec, config)


def _made(layers: Mapping[str, Any], spec: MethodSpec, config: Any) -> Vera:
    first = next(iter(layers.values()))
    dtype = kept(first.vera_lambda_d[ADAPTER], spec).dtype
    A, B = (shared[ADAPTER].detach().to(dtype).clone() for shared in (first.vera_A, first.vera_B))
    paths: dict[str, RowPath] = {}
    for name, layer in layers.items():
        b, d = kept(layer.vera_lambda_b[ADAPTER], spec), kept(layer.vera_lambda_d[ADAPTER], spec)
        mine_A, mine_B = A[:, : layer.in_features].to(b.device), B[: layer.out_features].to(b.device)
        paths[name] = SharedLowRank(b, d, mine_A, mine_B, spec.dropout)
    shared = {"base_model.vera_A": A, "base_model.vera_B": B} if config.save_projection else {}
    return Vera(spec, paths=paths, dropout=spec.dropout, peft_config=config, shared=shared)
