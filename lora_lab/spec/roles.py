"""The six layer roles of the article and the 2^6 = 64 masks made of them.

A *role* says what a linear layer does in a transformer block, whatever the architecture calls it;
a *mask* is the subset of roles that carries adapters.  Masks are kept as tuples in the order of
:data:`ROLES`, so that two spellings of one mask are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import compress, product

from lora_lab.errors import SpecError, nearest

ROLES: tuple[str, ...] = ("query", "key", "value", "projection", "mlp", "head")
"""Role names in their canonical order (the article's ``lora_query`` … ``lora_head``)."""

Mask = tuple[str, ...]


def mask_of(roles: Iterable[str] | Mapping[str, bool] | str) -> Mask:
    """Return the canonical mask of ``roles``.

    ``roles`` is an iterable of role names, one ``"query+value"``-style string (``"all"`` and
    ``"none"`` included), or a mapping from role to boolean.

    Raises:
        SpecError: a name that is not a role.
    """
    if isinstance(roles, str):
        names: Iterable[str] = {"all": ROLES, "none": ()}.get(roles, roles.split("+"))
    elif isinstance(roles, Mapping):
        for name in roles:
            _check(name)
        names = [name for name, on in roles.items() if on]
    else:
        names = list(roles)
    wanted = set()
    for name in names:
        _check(name)
        wanted.add(name)
    return tuple(role for role in ROLES if role in wanted)


def mask_name(mask: Mask) -> str:
    """``"query+value"`` for a mask; ``"none"`` for the empty one and ``"all"`` for the full one."""
    if not mask:
        return "none"
    return "all" if len(mask) == len(ROLES) else "+".join(mask)


def all_masks() -> tuple[Mask, ...]:
    """The 64 masks, from the empty one to the full one, in binary counting order."""
    return tuple(tuple(compress(ROLES, bits)) for bits in product((False, True), repeat=len(ROLES)))


def _check(name: object) -> None:
    if name not in ROLES:
        raise SpecError(
            f"method.roles: {name!r} is not a role{nearest(str(name), ROLES)} Use any of: {', '.join(ROLES)}."
        )
