"""Several low-rank updates as one: the exact sum, and PEFT's ways to merge adapters (``peft.utils.merge_utils``).

========================  ==================================================================================
``sum``, ``cat``          exact: factors side by side, the rank is the sum of the ranks
``svd``                   the best approximation of the sum of a given rank (Eckart-Young)
``linear``                ``A`` and ``B`` added each for itself: cross terms, and one rank for all; an approximation
``ties``                  of the largest entries those of the majority's sign (arXiv:2306.01708)
``dare_linear``           a random share of the entries, scaled up (arXiv:2311.03099); then as ``linear``
``dare_ties``             likewise; then the majority's sign
``magnitude_prune``       the largest entries
``…_svd``                 the same on the product ``B A`` instead of on the factors, then an SVD
========================  ==================================================================================
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lora_lab.errors import MethodError
from lora_lab.methods.attachment import Attachment, LowRank
from lora_lab.methods.dora import Magnitude
from lora_lab.methods.lora import lora_config
from lora_lab.methods.targets import modules_of, roles_of
from lora_lab.methods.vera import SharedLowRank
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec
from lora_lab.spec.combining import EXACT, ON_FACTORS

SIGNS = ("total", "frequency")

Part = tuple[float, LowRank]
"""A weight and the update it is for."""


def combined(
    sets: Sequence[Mapping[str, LowRank]],
    weights: Sequence[float],
    way: str = "sum",
    *,
    rank: int | None = None,
    density: float = 0.5,
    sign: str = "total",
    seed: int = 0,
) -> dict[str, LowRank]:
    """One update a module, of ``sets`` of updates by module, which may be on different modules and of other ranks.

    ``rank`` is that of an SVD (the largest of the module's by default), ``density`` the share of entries that stay,
    ``sign`` how TIES counts the majority, ``seed`` draws what DARE drops. Scalings are in the weights; the result's
    scaling is 1.

    Raises:
        MethodError: ranks that differ, where ``way`` works on factors.
    """
    modules = dict.fromkeys(name for one in sets for name in one)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")  # 1 is what was asked for: nothing is dropped
        torch.default_generator.manual_seed(seed)
        return {
            name: _one(
                name,
                [(w, one[name]) for w, one in zip(weights, sets, strict=True) if name in one],
                way,
                rank,
                density,
                sign,
            )
            for name in modules
        }


def _one(name: str, parts: Sequence[Part], way: str, rank: int | None, density: float, sign: str) -> LowRank:
    if way in EXACT:
        A, B = _side_by_side(parts)
    elif way == "svd":
        A, B = nearest_of_rank(*_side_by_side(parts), rank or max(part.rank for _, part in parts))
    elif way in ON_FACTORS:
        A, B = _on_factors(name, parts, _merger(way, density, sign))
    else:
        merge = _merger(way.removesuffix("_svd"), density, sign)
        products = [part.scaling * (part.B @ part.A) for _, part in parts]
        whole = merge(products, torch.tensor([weight for weight, _ in parts]))
        U, S, Vh = torch.linalg.svd(whole, full_matrices=False)
        keep = min(rank or max(part.rank for _, part in parts), len(S))
        A, B = Vh[:keep], U[:, :keep] * S[:keep]
    return LowRank(nn.Parameter(A.contiguous()), nn.Parameter(B.contiguous()), 1.0)


def _side_by_side(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    A = torch.cat([part.A for _, part in parts])
    return A, torch.cat([weight * part.scaling * part.B for weight, part in parts], dim=1)


def nearest_of_rank(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation of ``B A`` of rank ``rank``, without ever making ``B A``."""
    Qb, Rb = torch.linalg.qr(B.double())
    Qa, Ra = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.T)
    keep = min(rank, len(S))
    left = (Qb @ U[:, :keep]) * S[:keep]
    return (Vh[:keep] @ Qa.T).to(A.dtype), left.to(B.dtype)


Merger = Callable[[list[Tensor], Tensor], Tensor]


def _on_factors(name: str, parts: Sequence[Part], merge: Merger) -> tuple[Tensor, Tensor]:
    """As PEFT's ``add_weighted_adapter``: the root of each weight on either side, its sign on A's."""
    ranks = sorted({part.rank for _, part in parts})
    if len(ranks) > 1:
        raise MethodError(
            f"{name} has ranks {', '.join(map(str, ranks))}, and factors of different ranks cannot be added entry by "
            "entry. Use --method sum (exact), svd, or one of the …_svd."
        )
    scaled = [weight * part.scaling for weight, part in parts]
    roots = torch.tensor([math.sqrt(abs(one)) for one in scaled])
    signs = torch.tensor([1.0 if one >= 0 else -1.0 for one in scaled])
    A = merge([part.A.data for _, part in parts], roots * signs)
    return A, merge([part.B.data for _, part in parts], roots)


def _merger(way: str, density: float, sign: str) -> Merger:
    from peft.utils import merge_utils as peft

    ways: Mapping[str, Merger] = {
        "linear": peft.task_arithmetic,
        "ties": lambda tensors, weights: peft.ties(tensors, weights, density, sign),
        "dare_linear": lambda tensors, weights: peft.dare_linear(tensors, weights, density),
        "dare_ties": lambda tensors, weights: peft.dare_ties(tensors, weights, density, sign),
        "magnitude_prune": lambda tensors, weights: peft.magnitude_prune(tensors, weights, density),
    }
    return ways[way]


def low_rank(attachment: Attachment, name: str) -> dict[str, LowRank]:
    """The attachment (``name`` in messages) as low-rank updates by module, whichever of the methods that are some.

    Raises:
        MethodError: a method that is no low-rank update.
    """
    found: dict[str, LowRank] = {}
    strange = attachment.prompt is not None or attachment.solo is not None
    for module in attachment.factors | attachment.paths:
        match attachment.paths.get(module):
            case None:
                factor = attachment.factors[module]
                A, B = factor.product()
                found[module] = LowRank(nn.Parameter(A.detach()), nn.Parameter(B.detach()), factor.scaling)
            case SharedLowRank(b=b, d=d, A=A, B=B):
                left = b.detach().unsqueeze(1) * B
                found[module] = LowRank(nn.Parameter(d.detach().unsqueeze(1) * A), nn.Parameter(left), 1.0)
            case _:
                strange = True
    if strange:
        dora = any(isinstance(path, Magnitude) for path in attachment.paths.values())
        raise MethodError(
            f"{name}: {'DoRA' if dora else attachment.spec.name} is no low-rank update, which is what adapters are "
            "combined and compared by. Use LoRA, AdaLoRA or VeRA adapters; if this one is a change of weights, "
            "`lora-lab merge` merges it."
        )
    return found


def lora_of(base: BaseModel, factors: Mapping[str, LowRank]) -> Attachment:
    """Low-rank updates by module as an ordinary LoRA attachment, which saves as PEFT's ``LORA``."""
    modules = modules_of(base.model, list(factors))
    ordered = {name: factors[name] for name in modules}
    ranks = {name: factor.rank for name, factor in ordered.items()}
    most = max(ranks.values())
    spec = MethodSpec(r=most, alpha=float(most), roles=roles_of(base.roles, list(ordered)))
    config = lora_config(base.model, modules, spec, ranks, ordered)
    return Attachment(spec, factors=ordered, peft_config=config)
