"""Layer-wise ranks: from ``method.rank_*`` to one rank a module, as PEFT's ``rank_pattern`` wants them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lora_lab.errors import MethodError
from lora_lab.methods.targets import layer_of
from lora_lab.spec import MethodSpec


def module_ranks(spec: MethodSpec, names: Sequence[str]) -> dict[str, int]:
    """The rank of each of the modules ``names``.

    A module outside the decoder layers (the head) has ``method.r``, scaled by a budget as the others. With a budget,
    ranks are the shares of it nearest to the shape, 1 at least, and sum to it exactly (largest remainders).

    Raises:
        MethodError: a name in ``method.rank_pattern`` that ends no module's, a budget below one rank a module, more
            groups than layers.
    """
    by_hand = _by_hand(spec, names)
    wanted = {name: share for name, share in _shaped(spec, names).items() if name not in by_hand}
    if spec.rank_budget is None:
        free = {name: max(1, math.floor(share + 0.5)) for name, share in wanted.items()}
    else:
        free = _within(spec.rank_budget - sum(by_hand.values()), wanted, spec)
    return {name: by_hand.get(name) or free[name] for name in names}


def _by_hand(spec: MethodSpec, names: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for end, rank in spec.rank_pattern:
        matched = [name for name in names if name == end or name.endswith(f".{end}")]
        if not matched:
            raise MethodError(
                f"method.rank_pattern: {end!r} is the end of no adapted module's name; they are "
                f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''}."
            )
        found |= dict.fromkeys(matched, rank)
    return found


def _shaped(spec: MethodSpec, names: Sequence[str]) -> Mapping[str, float]:
    layers = sorted({layer for name in names if (layer := layer_of(name)) is not None})
    if len(spec.rank_groups) > len(layers) and spec.rank_shape == "groups":
        raise MethodError(
            f"method.rank_groups={list(spec.rank_groups)} names {len(spec.rank_groups)} groups, and adapters are in "
            f"{len(layers)} layers. Name as many groups as there are layers at most."
        )

    def rank(layer: int | None) -> float:
        if layer is None or spec.rank_shape == "constant":
            return spec.r
        at = layers.index(layer)
        if spec.rank_shape == "groups":
            return spec.rank_groups[at * len(spec.rank_groups) // len(layers)]
        way = at / max(1, len(layers) - 1)
        assert spec.r_last is not None
        if spec.rank_shape == "linear":
            return spec.r + (spec.r_last - spec.r) * way
        return float(spec.r * (spec.r_last / spec.r) ** way)

    return {name: rank(layer_of(name)) for name in names}


def _within(budget: int, wanted: Mapping[str, float], spec: MethodSpec) -> dict[str, int]:
    if budget < len(wanted):
        raise MethodError(
            f"method.rank_budget={spec.rank_budget} leaves {budget} for {len(wanted)} modules, and each needs a rank "
            "of 1 at least. Raise it, or choose fewer roles or layers."
        )
    spare = budget - len(wanted)  # above the 1 that each has
    total = sum(wanted.values())
    shares = {name: spare * share / total for name, share in wanted.items()}
    ranks = {name: 1 + math.floor(share) for name, share in shares.items()}
    largest = sorted(shares, key=lambda name: math.floor(shares[name]) - shares[name])
    for name in largest[: budget - sum(ranks.values())]:
        ranks[name] += 1
    return ranks
