"""What every part of a spec checks when it is made: a value among those known, a number that is positive."""

from __future__ import annotations

from collections.abc import Collection

from lora_lab.errors import SpecError, nearest


def one_of(path: str, value: str, known: Collection[str]) -> None:
    """Refuse a ``value`` of config path ``path`` that is not ``known``, and name the nearest that is.

    Raises:
        SpecError
    """
    if value not in known:
        raise SpecError(f"{path}: unknown value {value!r}{nearest(value, known)} Known: {', '.join(known)}.")


def positive(path: str, value: int | None) -> None:
    """Refuse a count below 1; ``None`` passes.

    Raises:
        SpecError
    """
    if value is not None and value <= 0:
        raise SpecError(f"{path}: must be 1 or more, got {value}.")
