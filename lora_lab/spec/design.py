"""Factorial designs: which few points of a space of two-valued factors tell what each factor is worth.

Box, Hunter & Hunter, *Statistics for Experimenters*; Plackett & Burman, Biometrika 33 (1946) 305–325. A factor is a
role of ``method.roles: {masks: all}`` (off, on), a switch, or a domain with two values (a range: its two ends).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpaceError, SpecError
from lora_lab.spec.domains import Choices, Domain, Masks, listed
from lora_lab.spec.roles import ROLES, mask_of
from lora_lab.spec.run import RunSpec
from lora_lab.spec.space import MASK_PATH, Point, Space
from lora_lab.spec.tree import at_path, to_tree

Row = tuple[bool, ...]
Word = frozenset[str]
"""An effect: a set of factors. ``{query}`` is a main effect, ``{query, key}`` an interaction of two."""

PLACKETT_BURMAN: Mapping[int, str] = {
    8: "+++-+--",
    12: "++-+++---+-",
    16: "++++-+-++--+---",
    20: "++--++++-+-+----++-",
    24: "+++++-+-++--++--+-+----",
}
"""First rows of the cyclic designs, by number of points (table of the paper)."""
MOST_FACTORS = 12
ONE_AT_A_TIME = "one_at_a_time"
DESIGNS = ("factorial", "fractional", "plackett_burman", ONE_AT_A_TIME)
"""The designs by name."""


@dataclass(frozen=True)
class Factor:
    """A two-valued factor: its parameter's name (``method.roles.query``, ``method.r``) and its two levels."""

    name: str
    low: Any
    high: Any

    @property
    def short(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Design:
    """The points of a design, in order, and what it can and cannot tell apart.

    ``sentence`` says how many points of how many there are and of which resolution; ``aliases`` are effects that the
    design cannot tell from each other, one line each, those of main effects first.
    """

    points: tuple[Point, ...]
    sentence: str
    aliases: tuple[str, ...] = ()


def design(name: str, space: Space, base: RunSpec, runs: int | None = None) -> Design:
    """The design ``name`` (one of :data:`DESIGNS`) over ``space``.

    ``runs`` is the number of points (``None``: the fewest that give the design's resolution).

    Raises:
        SpaceError: a domain that is no factor, a condition (a design needs every factor in every point).
        SpecError: a number of points that the design does not have.
    """
    if space.conditions:
        raise SpaceError(f"sweep.sampler={name}: a design sets every path in every point; {_CONDITIONAL}")
    if name == ONE_AT_A_TIME:
        if runs is not None:
            raise SpecError("sweep.sampler=one_at_a_time takes no runs: it has the base and every single change of it.")
        return _one_at_a_time(space, base)
    factors = factors_of(space, name)
    return _TWO_LEVEL[name](factors, runs, lambda rows: tuple(_point(space, factors, row) for row in rows))


_CONDITIONAL = "drop the `when`, or use another sampler."


def factors_of(space: Space, name: str) -> list[Factor]:
    """The factors of a space, in its order (the roles of a mask in theirs).

    Raises:
        SpaceError: a domain without two levels; too many factors, or none.
    """
    found: list[Factor] = []
    for path, domain in space.domains:
        if path == MASK_PATH:
            if not isinstance(domain, Masks) or len(domain.values) != 2 ** len(ROLES):
                raise SpaceError(f"sweep.sampler={name} switches each role by itself: it needs {path}: {{masks: all}}.")
            found += [Factor(f"{path}.{role}", False, True) for role in ROLES]
        else:
            found.append(Factor(path, *_levels(path, domain, name)))
    if not 1 <= len(found) <= MOST_FACTORS:
        raise SpaceError(f"sweep.sampler={name}: needs 1 to {MOST_FACTORS} factors, the space has {len(found)}.")
    return found


def _levels(path: str, domain: Domain, name: str) -> tuple[Any, Any]:
    if isinstance(domain, (Choices, Masks)):
        if len(domain.values) != 2:
            raise SpaceError(
                f"sweep.sampler={name}: {path} has {len(domain.values)} values, and a factor has two; "
                "give {choices: [LOW, HIGH]}."
            )
        low, high = domain.values
        return (high, low) if (low, high) == (True, False) else (low, high)
    return domain.low, domain.high


def _point(space: Space, factors: Iterable[Factor], row: Row) -> dict[str, Any]:
    values = {f.name: f.high if on else f.low for f, on in zip(factors, row, strict=True)}
    roles = {role: values[f"{MASK_PATH}.{role}"] for role in ROLES if f"{MASK_PATH}.{role}" in values}
    return {path: mask_of(roles) if path == MASK_PATH else values[path] for path in space.paths}


Points = Callable[[Iterable[Row]], tuple[Point, ...]]


def _full(factors: list[Factor], runs: int | None, points: Points) -> Design:
    rows = list(itertools.product((False, True), repeat=len(factors)))
    if runs not in (None, len(rows)):
        raise SpecError(f"sweep.sampler=factorial has {len(rows)} points; for fewer use sampler=fractional.")
    return Design(points(rows), f"full 2^{len(factors)} factorial design: all {len(rows)} points, nothing is aliased")


def _fractional(factors: list[Factor], runs: int | None, points: Points) -> Design:
    k = len(factors)
    basic = next((m for m in range(3, k) if 2 ** (m - 1) >= k), None)
    if basic is None:
        raise SpaceError(f"sweep.sampler=fractional: {k} factors have no fraction of resolution IV; use factorial.")
    possible = [2**m for m in range(basic, k)]
    if runs is None:
        runs = possible[0]
    if runs not in possible:
        said = ", ".join(map(str, possible))
        raise SpecError(f"sweep.sampler.options.runs: a fraction of {k} factors has {said} points, not {runs}.")
    m = runs.bit_length() - 1
    names = [f.short if _unique(f.short, factors) else f.name for f in factors]
    generators, defining = _best_generators(names, m)
    rows = []
    for bits in itertools.product((False, True), repeat=m):
        signs = dict(zip(names[:m], bits, strict=True))
        made = [_product(signs, word) for word in generators]
        rows.append((*bits, *made))
    resolution = min(map(len, defining))
    built = ", ".join(f"{name} = {_say(word, names)}" for name, word in zip(names[m:], generators, strict=True))
    clear = "main effects are clear of interactions of two" + ("" if resolution == 4 else ", and these of each other")
    sentence = f"2^({k}-{k - m}) fraction of resolution {_ROMAN[resolution]}: {runs} of {2**k} points ({built})"
    return Design(points(rows), f"{sentence}; {clear}", _aliases(names, defining))


_ROMAN = dict(enumerate(["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"], 1))


def _best_generators(names: list[str], m: int) -> tuple[list[Word], list[Word]]:
    """Generators of the last factors in the first ``m``, each of the least aberration after those before it."""
    basic, added = names[:m], names[m:]
    words = [frozenset(w) for size in range(3, m + 1) for w in itertools.combinations(basic, size)]
    if len(added) > 1:
        words = [word for word in words if len(word) % 2]  # odd words make every defining word even: resolution IV
    chosen: list[Word] = []
    for n in range(len(added)):
        chosen.append(min(words, key=lambda word: _aberration([*chosen, word], added[: n + 1], len(names))))
    return chosen, _defining([word | {name} for word, name in zip(chosen, added, strict=True)])


def _aberration(words: list[Word], added: list[str], factors: int) -> list[int]:
    """How many defining words there are of each length, the shortest first: less is better."""
    lengths = [len(word) for word in _defining([w | {name} for w, name in zip(words, added, strict=True)])]
    return [lengths.count(size) for size in range(factors + 1)]


def _defining(generators: list[Word]) -> list[Word]:
    """All products of the generators' words: the effects that are the mean itself."""
    out: list[Word] = []
    for size in range(1, len(generators) + 1):
        for chosen in itertools.combinations(generators, size):
            word: Word = frozenset()
            for other in chosen:
                word = word ^ other
            out.append(word)
    return out


def _aliases(names: list[str], defining: list[Word]) -> tuple[str, ...]:
    """Main effects and interactions of two that the design cannot tell apart."""
    effects = [frozenset(w) for size in (1, 2) for w in itertools.combinations(names, size)]
    classes: list[list[Word]] = []
    seen: set[Word] = set()
    for effect in effects:
        if effect in seen:
            continue
        same = [other for other in effects if other == effect or (other ^ effect) in defining]
        seen |= set(same)
        if len(same) > 1:
            classes.append(same)
    return tuple(" = ".join(_say(word, names) for word in same) for same in classes)


def _say(word: Word, names: list[str]) -> str:
    return "·".join(name for name in names if name in word)


def _product(signs: Mapping[str, bool], word: Word) -> bool:
    """The product of signs, ``True`` for +: positive when an even number of them is negative."""
    return sum(not signs[name] for name in word) % 2 == 0


def _unique(short: str, factors: list[Factor]) -> bool:
    return sum(f.short == short for f in factors) == 1


def _plackett_burman(factors: list[Factor], runs: int | None, points: Points) -> Design:
    k = len(factors)
    possible = [n for n in PLACKETT_BURMAN if n > k]
    if runs is None:
        runs = possible[0]
    if runs not in possible:
        said = ", ".join(map(str, possible))
        raise SpecError(f"sweep.sampler.options.runs: Plackett–Burman for {k} factors has {said} points, not {runs}.")
    first = [sign == "+" for sign in PLACKETT_BURMAN[runs]]
    rows = [tuple((first[-n:] + first[:-n])[:k]) for n in range(runs - 1)] + [(False,) * k]
    how = "fully with some" if runs in (8, 16) else "in part with all"
    sentence = f"Plackett–Burman design of resolution III: {runs} of {2**k} points"
    aliases = (f"every main effect is aliased {how} interactions of two other factors",)
    return Design(points(rows), f"{sentence}; {aliases[0]}", aliases)


def _of(base: RunSpec, tree: Mapping[str, Any], path: str) -> Any:
    """The base's value at ``path``; an optimizer's default where none is given."""
    part, _, name = path.partition(".")
    value = at_path(tree, path)
    return base.optimizer.own.get(name) if value is None and part == "optimizer" else value


def _one_at_a_time(space: Space, base: RunSpec) -> Design:
    tree = to_tree(base)
    start: dict[str, Any] = {}
    for path, domain in space.domains:
        value = _of(base, tree, path)
        found = domain.take(value)
        if found is None:
            raise SpaceError(
                f"sweep.sampler=one_at_a_time begins with the base, whose {path}={value!r} is not in the "
                "domain; add it there, or set another base."
            )
        start[path] = found[0]
    points = [dict(start)]
    for path, domain in space.domains:
        points += [start | {path: value} for value in _others(path, domain, start[path])]
    sentence = (
        f"one at a time from the base: {len(points)} points; effects are those beside the base, interactions unseen"
    )
    return Design(tuple(points), sentence)


def _others(path: str, domain: Domain, now: Any) -> list[Any]:
    """The values that one change from ``now`` leads to: the domain's others; with all masks, one role switched."""
    if path == MASK_PATH and isinstance(domain, Masks) and len(domain.values) == 2 ** len(ROLES):
        return [mask_of(set(now) ^ {role}) for role in ROLES]
    values = listed(domain)
    if values is None:
        raise SpaceError(f"sweep.sampler=one_at_a_time: {path} is a range without steps; give it a step, or choices.")
    return [value for value in values if value != now]


_TWO_LEVEL: Mapping[str, Callable[[list[Factor], int | None, Points], Design]] = {
    "factorial": _full,
    "fractional": _fractional,
    "plackett_burman": _plackett_burman,
}
