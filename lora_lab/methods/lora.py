"""LoRA (arXiv:2106.09685), made by PEFT itself on the real model and then taken off it again.

Options: rsLoRA (arXiv:2312.03732), DoRA (arXiv:2402.09353), layer-wise ranks, and the initialisations of
:mod:`lora_lab.methods.inits`. On a quantised base it is QLoRA (arXiv:2305.14314).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lora_lab.errors import MethodError
from lora_lab.methods.attachment import Attachment, LowRank, RowPath
from lora_lab.methods.dora import Magnitude
from lora_lab.methods.inits import DECOMPOSING, MUTATING, Calibration, check_ranks, eva_directions, start
from lora_lab.methods.injection import (
    ADAPTER,
    any_conv1d,
    injected,
    is_quantised,
    kept,
    shortest,
    untouched,
)
from lora_lab.methods.ranks import module_ranks
from lora_lab.methods.targets import linear_shape, modules_of, roles_of, target_modules
from lora_lab.models import BaseModel, frozen_weight
from lora_lab.spec import MethodSpec, pairs


def attach_lora(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """See :func:`lora_lab.methods.attach`."""
    from peft.tuners.lora import LoraModel

    modules = modules_of(base.model, target_modules(base.roles, spec, base.spec.name))
    if not modules:
        return Attachment(spec)
    ranks = module_ranks(spec, list(modules))
    config = lora_config(base.model, modules, spec, ranks)
    if spec.init.startswith(DECOMPOSING):
        check_ranks(ranks, modules, spec)
    quantised = any(is_quantised(module) for module in modules.values())
    afterwards = spec.init.startswith(DECOMPOSING) or (spec.init == "orthogonal" and quantised)
    if not afterwards:
        config.init_lora_weights = spec.init if spec.init not in ("default", "adapters") else True
    with untouched(base.model, seed):
        directions = eva_directions(ranks, base, spec, calibration) if spec.init == "eva" else {}
        layers = injected(base.model, LoraModel, config, list(modules))
        for name, A in directions.items():
            layers[name].lora_A[ADAPTER].weight.data = A
        if afterwards and not directions:
            start(layers, modules, base, spec.init)
        factors = {name: _factors(layer, spec, base) for name, layer in layers.items()}
    config.init_lora_weights = True
    paths: dict[str, RowPath] = {}
    if spec.dora:
        for name, module in modules.items():
            paths[name] = Magnitude(_row_norms(module, spec), factors[name], module)
    if spec.init.startswith(MUTATING):
        for factor in factors.values():
            factor.initial = (factor.A.detach().clone(), factor.B.detach().clone())
        config = lora_config(base.model, modules, spec, {name: 2 * rank for name, rank in ranks.items()}, factors)
    return Attachment(spec, factors=factors, paths=paths, dropout=spec.dropout, peft_config=config)


def count_lora(base: BaseModel, spec: MethodSpec) -> int:
    """``r (in + out)`` a module, and ``out`` more with DoRA."""
    modules = modules_of(base.model, target_modules(base.roles, spec, base.spec.name))
    ranks = module_ranks(spec, list(modules))
    shapes = {name: linear_shape(module) for name, module in modules.items()}
    return sum(ranks[name] * (i + o) + (o if spec.dora else 0) for name, (i, o) in shapes.items())


def lora_config(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    spec: MethodSpec,
    ranks: Mapping[str, int],
    scaled: Mapping[str, LowRank] | None = None,
) -> Any:
    """PEFT's config of these modules and ranks: the commonest rank is ``r``, the others are patterns.

    ``scaled`` factors keep their scalings at their new ranks.
    """
    from peft import LoraConfig

    alphas = {name: spec.alpha_at(rank) for name, rank in ranks.items()}
    if scaled is not None:
        alphas = {name: factor.scaling * ranks[name] for name, factor in scaled.items()}
    ((r, alpha), _), *_ = Counter((ranks[name], alphas[name]) for name in ranks).most_common(1)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=_number(alpha),
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora and scaled is None,
        use_dora=spec.dora,
        rank_pattern={name: rank for name, rank in ranks.items() if rank != r},
        alpha_pattern={name: _number(value) for name, value in alphas.items() if value != alpha},
        target_modules=shortest(list(modules), model),
        fan_in_fan_out=any_conv1d(modules),
    )


def _number(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha


def _factors(layer: Any, spec: MethodSpec, base: BaseModel) -> LowRank:
    A, B = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    if base.spec.dtype == "float64":  # some inits are made in float32
        A, B = A.double(), B.double()
    return LowRank(kept(A, spec), kept(B, spec), float(layer.scaling[ADAPTER]))


def _row_norms(module: nn.Module, spec: MethodSpec) -> nn.Parameter:
    """The row norms of the weight, from which DoRA starts, rounded to its dtype as PEFT's are."""
    return kept(torch.linalg.vector_norm(frozen_weight(module), dim=1), spec)


def loaded_lora(base: BaseModel, wrapped: Any, dtype: str) -> Attachment:
    """The attachment of an adapter that PEFT has loaded around ``base.model``.

    Raises:
        MethodError: adapters on an embedding or a convolution.
    """
    from peft.tuners.lora import LoraLayer

    config = wrapped.peft_config[ADAPTER]
    layers = {name: layer for name, layer in base.model.named_modules() if isinstance(layer, LoraLayer)}
    strange = [name for name, layer in layers.items() if ADAPTER not in layer.lora_A]
    if strange:
        raise MethodError(f"The adapter is on {strange[0]}, which is no linear module. Use PEFT itself for it.")
    spec = MethodSpec(
        r=config.r,
        alpha=float(config.lora_alpha),
        roles=roles_of(base.roles, list(layers)),
        dropout=config.lora_dropout,
        dtype=dtype,
        rslora=config.use_rslora,
        dora=config.use_dora,
        rank_pattern=pairs({name: layer.r[ADAPTER] for name, layer in layers.items() if layer.r[ADAPTER] != config.r}),
    )
    factors = {name: _factors(layer, spec, base) for name, layer in layers.items()}
    paths: dict[str, RowPath] = {}
    if spec.dora:
        for name, layer in layers.items():
            magnitude = kept(layer.lora_magnitude_vector[ADAPTER].weight, spec)
            paths[name] = Magnitude(magnitude, factors[name], layer.get_base_layer())
    return Attachment(spec, factors=factors, paths=paths, dropout=spec.dropout, peft_config=config)
