"""A search space: domains keyed by config path, some of them only under a condition.

``Space`` knows nothing of samplers; the study turns its domains into parameters. A mask domain
(`method.roles: {masks: …}`) is six booleans ``method.roles.query`` … to a sampler and one value here; a single
role is switched by a domain of its own, ``method.roles.query: [true, false]``, the others being those of the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_lab.errors import SpaceError, nearest
from lora_lab.spec.domains import Choices, Domain, ends, listed, read, write
from lora_lab.spec.expression import Expression, one_of_values
from lora_lab.spec.roles import ROLES, mask_name, mask_of
from lora_lab.spec.run import RunSpec
from lora_lab.spec.tree import Pairs, at_path, to_tree, with_paths

Point = Mapping[str, Any]
"""One value per searched config path; a path whose condition does not hold is left out."""

MASK_PATH = "method.roles"
SWITCHED = (MASK_PATH, "data.tasks")
"""Lists of names whose single names may be searched, each as a boolean of its own."""


@dataclass(frozen=True)
class Space:
    """Named domains, in the order they were written, and the conditions under which some of them are searched.

    ``conditions`` holds, by path, the expression over the run's values that must be true; a path without one is
    always searched. Where it is false the run keeps the base's value, and the path is not in the point.

    Make one with :meth:`from_tree`, which refuses what cannot be searched.
    """

    domains: tuple[tuple[str, Domain], ...] = ()
    conditions: tuple[tuple[str, Expression], ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The searched config paths."""
        return tuple(path for path, _ in self.domains)

    def condition(self, path: str) -> Expression | None:
        """The condition under which ``path`` is searched; ``None``: always."""
        return self._conditions.get(path)

    @cached_property
    def _conditions(self) -> Mapping[str, Expression]:
        return dict(self.conditions)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The paths as they are decided: as written, but after those that their conditions name.

        Raises:
            SpaceError: conditions that wait for each other.
        """
        needs = {path: self._needs(path) for path in self.paths}
        out: list[str] = []
        while len(out) < len(needs):
            ready = next((p for p in self.paths if p not in out and needs[p] <= set(out)), None)
            if ready is None:
                circle = ", ".join(path for path in self.paths if path not in out)
                raise SpaceError(f"sweep.space: the conditions of {circle} wait for each other; break the circle.")
            out.append(ready)
        return tuple(out)

    def walk(self, base: RunSpec | None, choose: Callable[[str, Domain], Any]) -> dict[str, Any]:
        """The point that ``choose`` makes: it is asked for every path that is searched there, parents first.

        ``base`` gives the values that conditions name and the space does not search.
        """
        domains, point = dict(self.domains), dict[str, Any]()
        tree = to_tree(base) if base is not None else {}
        for path in self.order:
            if self._active(path, point, tree):
                point[path] = choose(path, domains[path])
        return {path: point[path] for path in self.paths if path in point}

    def grid(self, base: RunSpec | None = None) -> list[dict[str, Any]] | None:
        """Every point, first path slowest; ``None`` where a domain has no finite list of values.

        ``base`` is needed where a condition names a value that is not searched.
        """
        lists = {path: listed(domain) for path, domain in self.domains}
        if any(values is None for values in lists.values()):
            return None
        tree = to_tree(base) if base is not None else {}
        finite = {path: values or [] for path, values in lists.items()}
        return [{path: p[path] for path in self.paths if path in p} for p in self._grid(0, {}, tree, finite)]

    def _grid(
        self, depth: int, point: dict[str, Any], tree: Mapping[str, Any], lists: Mapping[str, list[Any]]
    ) -> Iterator[dict[str, Any]]:
        if depth == len(self.order):
            yield point
            return
        path = self.order[depth]
        if not self._active(path, point, tree):
            yield from self._grid(depth + 1, point, tree, lists)
            return
        for value in lists[path]:
            yield from self._grid(depth + 1, point | {path: value}, tree, lists)

    def check(self, base: RunSpec) -> None:
        """Refuse a path that ``base`` does not have, domain ends that no run accepts, conditions that never hold.

        Raises:
            SpaceError: the path is named, with the nearest one that exists.
            SpecError: a value of a domain that contradicts ``base`` or is out of its range.
        """
        known = leaves(base)
        for path, domain in self.domains:
            if not exists(path, base, known):
                raise SpaceError(
                    f"sweep.space: no config path {path!r}{nearest(path, known)} "
                    "A path is group.field, as in method.r or optimizer.lr."
                )
            if path == "seed":
                raise SpaceError("sweep.space: seeds are repeats, not a domain; use sweep.repeats=N.")
            if path.rpartition(".")[0] in SWITCHED:
                self._check_switch(path, domain)
        for path, condition in self.conditions:
            for name in condition.names:
                if not exists(name, base, known):
                    raise SpaceError(
                        f"sweep.space.{path}: when {condition.text}: no value {name!r}{nearest(name, known)}"
                    )
        for path, domain in self.domains:
            around = self.around(path, base)
            for value in ends(domain):
                base.at(around | {path: value})

    def _check_switch(self, path: str, domain: Domain) -> None:
        above, _, name = path.rpartition(".")
        if above in self.paths:
            raise SpaceError(f"sweep.space: {above} and {path} both decide on {name}; search one of them.")
        if above == MASK_PATH and name not in ROLES:
            raise SpaceError(f"sweep.space: {name!r} is not a role{nearest(name, ROLES)}")
        if not isinstance(domain, Choices) or not all(isinstance(value, bool) for value in domain.values):
            raise SpaceError(f"sweep.space.{path}: {name} is switched on or off: {{choices: [true, false]}}.")

    def around(self, path: str, base: RunSpec) -> dict[str, Any]:
        """Values of the other searched paths under which ``path`` is searched; empty where it always is.

        Raises:
            SpaceError: there are none.
        """
        if self.condition(path) is None:
            return {}
        parents = self._ancestors(path)
        if not parents:
            if not self._active(path, {}, to_tree(base)):
                raise SpaceError(
                    f"sweep.space.{path}: its condition {self._said(path)} never holds: it names nothing that is "
                    "searched, and the base's values do not meet it."
                )
            return {}
        above = [(path, domain) for path, domain in self.domains if path in parents]
        part = Space(
            tuple((p, d if listed(d) is not None else Choices(tuple(ends(d)))) for p, d in above),
            tuple((p, c) for p, c in self.conditions if p in parents),
        )
        for point in part.grid(base) or []:
            if self._active(path, point, to_tree(base)):
                return point
        if all(listed(domain) is not None for _, domain in above):
            raise SpaceError(
                f"sweep.space.{path}: its condition {self._said(path)} holds for no values of "
                f"{', '.join(sorted(parents))}."
            )
        return {}

    def _said(self, path: str) -> str:
        condition = self.condition(path)
        return repr(condition.text) if condition else "(none)"

    def _needs(self, path: str) -> set[str]:
        """The searched paths that the condition of ``path`` reads."""
        condition = self.condition(path)
        names = condition.names if condition else ()
        if path in names:
            raise SpaceError(f"sweep.space.{path}: its condition names itself.")
        near = [(f"{name}.", f"{other}.", other) for name in names for other in self.paths]
        return {other for name, dotted, other in near if name.startswith(dotted) or dotted.startswith(name)}

    def _ancestors(self, path: str) -> set[str]:
        found: set[str] = set()
        left = [path]
        while left:
            new = self._needs(left.pop()) - found
            found |= new
            left += new
        return found

    def _active(self, path: str, point: Point, tree: Mapping[str, Any]) -> bool:
        condition = self.condition(path)
        if condition is None:
            return True

        def look_up(name: str) -> Any:
            if name in point:
                return point[name]
            near = any(path.startswith(f"{name}.") or name.startswith(f"{path}.") for path in point)
            try:
                return _plain(at_path(with_paths(tree, point) if near else tree, name))
            except KeyError:
                raise SpaceError(f"sweep.space.{path}: when {condition.text}: no value {name!r}.") from None

        return condition.holds(look_up, strict=False)  # what is not set meets no `momentum > 0.5`

    def take(self, point: Point, base: RunSpec, where: str) -> dict[str, Any]:
        """``point``, which may leave paths open, with its values as the domains hold them.

        Raises:
            SpaceError: a path that is not searched (there), a value outside its domain; begins with ``where``.
        """
        domains, tree = dict(self.domains), to_tree(base)
        taken: dict[str, Any] = {}
        for path, value in point.items():
            if path not in domains:
                raise SpaceError(f"{where}: {path} is not searched{nearest(path, self.paths)}")
            found = domains[path].take(value)
            if found is None:
                raise SpaceError(f"{where}: {path}={value!r} is not in its domain {write(domains[path])}.")
            taken[path] = found[0]
        for path in taken:
            open_parents = [p for p in self._ancestors(path) - set(taken) if self._active(p, taken, tree)]
            if open_parents:
                raise SpaceError(f"{where}: {path} is searched under a condition; give {open_parents[0]} beside it.")
            if not self._active(path, taken, tree):
                raise SpaceError(f"{where}: {path} is not searched there: its condition {self._said(path)} is false.")
        return {path: taken[path] for path in self.paths if path in taken}

    def open_paths(self, point: Point, base: RunSpec) -> list[str]:
        """The paths that are searched at ``point`` and not in it."""
        tree = to_tree(base)
        return [path for path in self.paths if path not in point and self._active(path, point, tree)]

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> Space:
        """Read a space as it stands in YAML: ``{path: {choices|int|float|masks: …, when: …}}``.

        ``int`` and ``float`` take ``[low, high]`` or ``{low, high, step, log}``. ``when`` is an expression, or a
        mapping from a path to the value, or list of values, that it must have.

        Raises:
            SpaceError: an unknown kind of domain, an empty list, an inverted or impossible range, a condition that
                is none.
        """
        domains: list[tuple[str, Domain]] = []
        conditions: list[tuple[str, Expression]] = []
        for path, said in tree.items():
            domain = said
            if isinstance(said, Mapping) and "when" in said:
                conditions.append((path, _condition(path, said["when"])))
                domain = {kind: value for kind, value in said.items() if kind != "when"}
            domains.append((path, read(path, domain)))
        space = Space(tuple(domains), tuple(conditions))
        assert space.order is not None  # refuses circles
        return space

    def to_tree(self) -> dict[str, Any]:
        """The inverse of :meth:`from_tree`."""
        conditions = dict(self.conditions)
        return {
            path: write(domain) | ({"when": conditions[path].text} if path in conditions else {})
            for path, domain in self.domains
        }


def leaves(base: RunSpec) -> list[str]:
    """Every config path of a run that holds a value."""
    return _leaves(to_tree(base))


def exists(path: str, base: RunSpec, known: list[str]) -> bool:
    """Whether a run has ``path``: one of its values ``known``, a name below a free mapping, or a switch of a list."""
    above = path.rpartition(".")[0]
    if path in known or above in SWITCHED:
        return True
    holder: Any = base
    for part in above.split("."):
        holder = dict(holder).get(part) if isinstance(holder, Pairs) else getattr(holder, part, None)
    return isinstance(holder, Pairs)


def show(value: Any) -> str:
    """A searched value as people read it: ``8``, ``0.5``, ``query+value``, ``addition+dates``, ``none``."""
    if isinstance(value, (tuple, list)):
        if value and set(value) <= set(ROLES):
            return mask_name(mask_of(value))
        names = all(isinstance(v, str) for v in value)
        return "+".join(value) or "none" if names else str(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _condition(path: str, when: Any) -> Expression:
    if isinstance(when, str):
        return Expression(when)
    if isinstance(when, Mapping) and when:
        parts = [one_of_values(name, values) for name, values in when.items()]
        return Expression(" and ".join(part.text for part in parts))
    raise SpaceError(
        f'sweep.space.{path}.when: a condition such as {{optimizer.name: sgd}} or "method.r > 8"; got {when!r}.'
    )


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, (list, tuple)) else value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for name, value in tree.items():
        path = f"{prefix}{name}"
        out += _leaves(value, f"{path}.") if isinstance(value, Mapping) and value else [path]
    return out
