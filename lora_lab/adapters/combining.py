"""Adapters that were trained apart, as one adapter on their base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lora_lab.adapters.hollow import hollow
from lora_lab.adapters.references import Reference
from lora_lab.errors import MethodError, SpecError, nearest
from lora_lab.methods import Attachment, LowRank
from lora_lab.methods import load as load_adapter
from lora_lab.methods.combining import SIGNS, combined, lora_of, low_rank
from lora_lab.spec.combining import WAYS


@dataclass(frozen=True)
class Combined:
    """``attachment`` is the result; ``error`` its distance from the exact weighted sum, relative (Frobenius norms)."""

    attachment: Attachment
    error: float
    ranks: tuple[int, int]
    modules: int


def combine(
    references: Sequence[Reference],
    weights: Sequence[float],
    way: str = "sum",
    *,
    rank: int | None = None,
    density: float = 0.5,
    sign: str = "total",
    seed: int = 0,
) -> Combined:
    """Combine low-rank adapters of one base model; see :mod:`lora_lab.methods.combining` for the ways.

    Ranks, alphas and masks may differ between them. Needs none of the base's weights.

    Raises:
        MethodError: a set that is no low-rank update, or ranks that ``way`` cannot bring together.
        SpecError: an unknown way, or options out of their domains.
    """
    if way not in WAYS:
        raise SpecError(f"--method {way}: no such way{nearest(way, WAYS)} Ways: {', '.join(WAYS)}.")
    if len(weights) != len(references):
        raise SpecError(f"--weights: {len(weights)} for {len(references)} adapters. Give one each.")
    if not 0 < density <= 1:
        raise SpecError(f"--density: must be above 0 and at most 1, got {density:g}.")
    if sign not in SIGNS:
        raise SpecError(f"--sign: must be one of {', '.join(SIGNS)}, got {sign!r}.")
    if rank is not None and rank < 1:
        raise SpecError(f"--rank: must be 1 or more, got {rank}.")
    shell = hollow(references[0].model)
    sets = []
    for reference in references:
        if reference.folder is None:
            raise MethodError(f"{reference.name}: there is no adapter to combine, it is the base model.")
        sets.append(low_rank(load_adapter(reference.folder, shell), reference.name))
    found = combined(sets, weights, way, rank=rank, density=density, sign=sign, seed=seed)
    exact = combined(sets, weights)
    ranks = [factor.rank for factor in found.values()]
    return Combined(lora_of(shell, found), distance(found, exact), (min(ranks), max(ranks)), len(found))


@torch.no_grad()
def distance(one: Mapping[str, LowRank], other: Mapping[str, LowRank]) -> float:
    """``|one - other| / |other|`` over all modules, Frobenius norms; never makes a matrix of the weights' size."""
    both = combined([one, other], [1.0, -1.0])
    far = sum(norm(factor) ** 2 for factor in both.values())
    size = sum(norm(factor) ** 2 for factor in other.values())
    return (far / size) ** 0.5 if size else float(far > 0)


@torch.no_grad()
def norm(factor: LowRank) -> float:
    """The Frobenius norm of ``scaling B A``, of its factors' triangles."""
    A, B = (part.double() for part in factor.product())
    _, Ra = torch.linalg.qr(A.T)
    _, Rb = torch.linalg.qr(B)
    return abs(factor.scaling) * float((Rb @ Ra.T).norm())
