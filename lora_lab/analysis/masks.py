"""What each of the six roles is worth: factorial effects, interactions and Shapley values of the 2^6 masks.

The metric of a mask is a function on subsets of the roles. From all 64 masks its main effects, its two-way
interactions and its Shapley values are exact contrasts of the 64 means; from fewer masks they are those of a model with
as many interactions as the masks can tell apart, and what they cannot is said (aliasing). Every number is a linear
combination of the runs, so its interval over seeds follows from the residual spread.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import linalg, stats

from lora_lab.analysis.grouping import base_metric, objective_of, searched_paths
from lora_lab.analysis.intervals import LEVEL, Floats
from lora_lab.spec import ROLES, all_masks

PATH = "method.roles"
COSTS = ("trainable_parameters", "lane_bytes")
MOST_ALIASES = 6
"""Aliases of one effect that are listed by name."""

Term = tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """A number with its 95 % interval over seeds (NaN where no spread could be estimated)."""

    name: str
    value: float
    low: float
    high: float
    p: float

    @property
    def certain(self) -> bool:
        """The interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class MaskEffects:
    """The worth of the roles in one metric; make one with :func:`mask_effects`.

    ``main`` is the mean metric with a role minus without it, over all subsets of the others; ``interactions`` is half
    the difference of a role's effect with and without another (Box, Hunter & Hunter 2005, Statistics for Experimenters,
    chapter 5). ``shapley`` is a role's fair share of the gain of the full mask over the empty one (Shapley 1953), in
    the metric, positive where the role helps; ``per_million`` and ``per_mb`` divide it by the role's share of trainable
    parameters and of lane memory. ``order`` is the highest interaction in the model; ``aliases`` says for an effect
    with what it is mixed.
    """

    metric: str
    direction: str
    masks: int
    blocks: int
    order: int
    df: int
    std: float
    main: tuple[Effect, ...]
    interactions: tuple[Effect, ...]
    shapley: tuple[Effect, ...]
    parameters: Mapping[str, float]
    megabytes: Mapping[str, float]
    aliases: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    @cached_property
    def per_million(self) -> dict[str, Effect]:
        """Shapley values per million trainable parameters of the role."""
        return self._per(self.parameters, 1e6)

    @cached_property
    def per_mb(self) -> dict[str, Effect]:
        """Shapley values per megabyte of lane memory (adapter, gradients, optimizer state) of the role."""
        return self._per(self.megabytes, 1.0)

    def _per(self, costs: Mapping[str, float], unit: float) -> dict[str, Effect]:
        out = {}
        for e in self.shapley:
            cost = costs.get(e.name, 0.0)
            if cost > 0:
                out[e.name] = Effect(e.name, e.value / cost * unit, e.low / cost * unit, e.high / cost * unit, e.p)
        return out

    def worth(self, role: str = "projection") -> str:
        """Is this role worth adapting? One sentence."""
        found = next((e for e in self.shapley if e.name == role), None)
        if found is None:
            return f"The {role} layer does not vary in these masks: its worth is not known."
        verb = "lowers" if self.direction == "minimize" else "raises"
        interval = f"95 % CI {_signed(found.low)} to {_signed(found.high)}"
        share = f"adapting it {verb} {self.metric} by {_signed(found.value)} on average over all subsets ({interval})"
        if math.isnan(found.low):
            return (
                f"The {role} layer: {share.partition(' (')[0]}, of which chance may be any part: nothing was repeated."
            )
        if not found.certain:
            return f"The {role} layer is not shown to be worth it: {share}."
        if found.value < 0:
            return f"The {role} layer is not worth it, it harms: {share}."
        price = ""
        if role in self.per_million:
            order = sorted(self.per_million.values(), key=lambda e: -e.value)
            place = [e.name for e in order].index(role) + 1
            price = (
                f", {self.per_million[role].value:.3g} per million parameters, "
                f"number {place} of {len(order)} for its size"
            )
        return f"The {role} layer is worth it: {share}{price}."


def mask_effects(frame: pd.DataFrame, metric: str | None = None, direction: str | None = None) -> MaskEffects | None:
    """Effects of the roles over the masks of a sweep; ``None`` where masks were not searched or fewer than two varied.

    Everything else that was searched, and the seed, make a block: its mean is taken out, as a fixed effect. Where the
    empty mask was not trained, the base model's own score stands for it (it trains nothing) once a block.

    Raises:
        SpecError: an unknown metric or direction.
    """
    metric, direction = objective_of(frame, metric, direction)
    if PATH not in frame or PATH not in searched_paths(frame):
        return None
    base = base_metric(metric)
    done = frame[(frame["outcome"] == "COMPLETED") & frame[metric].notna()]
    rest = [path for path in searched_paths(frame) if path != PATH]
    costs = {name: done.groupby(PATH)[name].mean() for name in COSTS if name in done}
    notes = []
    blocks: list[Any] = [tuple(map(str, row)) for row in done[[*rest, "seed"]].itertuples(index=False)]
    if not _told_apart([tuple(mask) for mask in done[PATH]], blocks):
        points = done.astype(dict.fromkeys(rest, "object")).groupby([PATH, *rest], dropna=False, as_index=False)
        done = pd.DataFrame(points.agg({name: "mean" for name in (metric, base) if name in frame}))
        blocks = [0] * len(done)
        notes.append("the other settings differ from mask to mask: what they change counts as noise")
    masks = [tuple(mask) for mask in done[PATH]]
    values = done[metric].astype(float).tolist()
    bases = done[base].dropna() if base in done else done[metric].head(0)
    if () not in masks and len(bases):
        for block in dict.fromkeys(blocks):
            blocks, masks, values = [*blocks, block], [*masks, ()], [*values, float(bases.mean())]
        notes.append("the base model's own score stands for the empty mask, which trains nothing")
    return effects_of(masks, values, blocks, metric, direction, costs, tuple(notes))


def effects_of(
    masks: Sequence[Term],
    values: Sequence[float],
    blocks: Sequence[Any],
    metric: str = "eval_loss",
    direction: str = "minimize",
    costs: Mapping[str, pd.Series[float]] | None = None,
    notes: tuple[str, ...] = (),
) -> MaskEffects | None:
    """:func:`mask_effects` of runs given as lists: the mask, the value and the block (seed) of each."""
    roles = [role for role in ROLES if len({role in mask for mask in masks}) == 2]
    if len(roles) < 2:
        return None
    kinds = list(dict.fromkeys(masks))
    terms, order = _model(kinds, roles)
    design = _columns(masks, terms)
    X, y = _within(design, blocks), _within(np.asarray(values, dtype=float)[:, None], blocks)[:, 0]
    said = list(notes)
    inverse = linalg.pinvh(X.T @ X)
    beta = inverse @ (X.T @ y)
    many = len(set(blocks))
    std, df = _spread(X, y, beta, terms, many)
    cov = inverse * std**2

    def effect(name: str, weights: Floats) -> Effect:
        value = float(weights @ beta)
        error = math.sqrt(max(float(weights @ cov @ weights), 0.0))
        if df <= 0:
            return Effect(name, value, math.nan, math.nan, math.nan)
        half = float(stats.t.ppf(1 - LEVEL / 2, df)) * error
        p = 2 * float(stats.t.sf(abs(value) / error, df)) if error > 0 else float(value == 0)
        return Effect(name, value, value - half, value + half, p)

    at = {term: i for i, term in enumerate(terms)}
    unit = np.eye(len(terms))
    sign = -1.0 if direction == "minimize" else 1.0
    gain = sign * _shapley_weights(roles) @ _columns(_subsets(roles), terms)
    if order < len(roles):
        part = f"{len(kinds)} of {2 ** len(roles)} masks"
        highest = {1: "main effects only", 2: "main effects and two-way interactions"}.get(
            order, f"up to {order} roles"
        )
        said.append(f"{part}: a model with {highest}; what is higher is taken to be zero")
    if many == 1 and len(kinds) == len(masks):
        said.append("one seed: the interactions of three and more roles stand for the spread" if df > 0 else "one seed")
    return MaskEffects(
        metric=metric,
        direction=direction,
        masks=len(kinds),
        blocks=many,
        order=order,
        df=df,
        std=std,
        main=tuple(effect(role, 2 * unit[at[(role,)]]) for role in roles if (role,) in at),
        interactions=tuple(
            effect(" × ".join(pair), 2 * unit[at[pair]]) for pair in itertools.combinations(roles, 2) if pair in at
        ),
        shapley=tuple(effect(role, gain[i]) for i, role in enumerate(roles)),
        parameters=_cost(roles, (costs or {}).get("trainable_parameters"), 1.0),
        megabytes=_cost(roles, (costs or {}).get("lane_bytes"), 1e-6),
        aliases=_aliases(kinds, roles, terms),
        notes=tuple(said),
    )


def shapley(values: Mapping[Term, float], players: Sequence[str]) -> dict[str, float]:
    """Exact Shapley value of each player from the value of every subset (keys in the order of ``players``)."""
    subsets = _subsets(players)
    v = np.array([values[subset] for subset in subsets])
    return dict(zip(players, (_shapley_weights(players) @ v).tolist(), strict=True))


def _subsets(players: Sequence[str]) -> list[Term]:
    chosen = [m for m in all_masks() if set(m) <= set(players)] if set(players) <= set(ROLES) else []
    return chosen or [c for n in range(len(players) + 1) for c in itertools.combinations(players, n)]


def _shapley_weights(players: Sequence[str]) -> Floats:
    """(players, subsets): ``s! (n - s - 1)! / n!`` for the subsets a player joins, its negative where it is missing."""
    n = len(players)
    rows = []
    for player in players:
        row = []
        for subset in _subsets(players):
            s = len(subset) - (player in subset)
            weight = math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n)
            row.append(weight if player in subset else -weight)
        rows.append(row)
    return np.array(rows)


def _columns(masks: Sequence[Term], terms: Sequence[Term]) -> Floats:
    """±1 coding: the column of a term is the product of its roles' signs."""
    signs = {role: np.array([1.0 if role in mask else -1.0 for mask in masks]) for role in ROLES}
    return np.column_stack([np.prod([signs[role] for role in term], axis=0) * np.ones(len(masks)) for term in terms])


def _terms(roles: Sequence[str], order: int) -> list[Term]:
    return [c for n in range(order + 1) for c in itertools.combinations(roles, n)]


def _model(kinds: Sequence[Term], roles: Sequence[str]) -> tuple[list[Term], int]:
    """The terms up to the highest order that these masks tell apart; at least main effects, thinned if need be."""
    for order in range(len(roles), 0, -1):
        terms = _terms(roles, order)
        if len(terms) <= len(kinds) and np.linalg.matrix_rank(_columns(kinds, terms)) == len(terms):
            return terms, order
    kept: list[Term] = []
    for term in _terms(roles, 1):
        if np.linalg.matrix_rank(_columns(kinds, [*kept, term])) == len(kept) + 1:
            kept.append(term)
    return kept, 1


def _told_apart(masks: Sequence[Term], blocks: Sequence[Any]) -> bool:
    """True where enough masks share blocks to estimate the model's effects inside them."""
    roles = [role for role in ROLES if len({role in mask for mask in masks}) == 2]
    terms, _ = _model(list(dict.fromkeys(masks)), roles)
    return bool(np.linalg.matrix_rank(_within(_columns(masks, terms), blocks)) >= len(terms) - 1)


def _within(columns: Floats, blocks: Sequence[Any]) -> Floats:
    """Columns less their block means: what one intercept a block leaves (Frisch & Waugh 1933)."""
    codes, names = pd.factorize(pd.Series(list(blocks), dtype="object"))
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, codes, columns)
    return columns - (sums / np.bincount(codes)[:, None])[codes]


def _spread(X: Floats, y: Floats, beta: Floats, terms: Sequence[Term], blocks: int) -> tuple[float, int]:
    """Residual standard deviation and its degrees of freedom.

    A saturated model of one block leaves no residual: then the effects of three and more roles, taken to be noise,
    give it (Box, Hunter & Hunter 2005, chapter 5.14).
    """
    rank = int(np.linalg.matrix_rank(X)) + (blocks if not X[:, 0].any() else 0)
    df = len(y) - rank
    if df > 0:
        rest = y - X @ beta
        return math.sqrt(float(rest @ rest) / df), df
    high = [i for i, term in enumerate(terms) if len(term) > 2]
    if not high:
        return math.nan, 0
    return math.sqrt(len(y) * float(np.mean(beta[high] ** 2))), len(high)


def _cost(roles: Sequence[str], costs: pd.Series[float] | None, unit: float) -> dict[str, float]:
    """Each role's share of a cost that adds up over roles, by least squares over the masks (exact where it does)."""
    if costs is None or costs.isna().all():
        return {}
    masks = [tuple(mask) for mask in costs.index]
    on = np.array([[1.0, *(role in mask for role in roles)] for mask in masks], dtype=float)
    if np.linalg.matrix_rank(on) < on.shape[1]:
        return {}
    solved = np.linalg.lstsq(on, costs.to_numpy(dtype=float) * unit, rcond=None)[0]
    return dict(zip(roles, solved[1:].tolist(), strict=True))


def _aliases(kinds: Sequence[Term], roles: Sequence[str], terms: Sequence[Term]) -> dict[str, tuple[str, ...]]:
    """For each main effect and two-way interaction of the model: the left-out terms that its estimate contains.

    The alias matrix ``(X1' X1)^-1 X1' X2`` (Box, Hunter & Hunter 2005, chapter 6); of 1 or -1 it is the same column.
    """
    left = [term for term in _terms(roles, len(roles)) if term not in terms]
    if not left:
        return {}
    matrix = np.linalg.lstsq(_columns(kinds, terms), _columns(kinds, left), rcond=None)[0]
    found = {}
    for i, term in enumerate(terms):
        mixed = sorted(((len(t), -abs(matrix[i, j]), j) for j, t in enumerate(left) if abs(matrix[i, j]) > 1e-9))
        if not term or len(term) > 2 or not mixed:
            continue
        named = [_alias(float(matrix[i, j]), left[j]) for _, _, j in mixed[:MOST_ALIASES]]
        more = len(mixed) - MOST_ALIASES
        found[" × ".join(term)] = (*named, *([f"and {more} more"] if more > 0 else []))
    return found


def _alias(weight: float, term: Term) -> str:
    name = " × ".join(term)
    if math.isclose(abs(weight), 1.0, abs_tol=1e-9):
        return name if weight > 0 else f"-{name}"
    return f"{weight:.2g} {name}"


def _signed(value: float) -> str:
    return f"{value:.3g}"
