"""Bytes as people write and read them."""

from __future__ import annotations

import re

from lora_lab.errors import SpecError


def read_size(text: str, what: str = "memory") -> int:
    """Bytes of a size as people write it: ``24GB`` (10^9), ``24GiB`` (2^30), ``800MB``, ``1e9``.

    ``what`` is it the size of, in messages.

    Raises:
        SpecError: it is not a size.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:
        number = -1.0
    if found is None or number <= 0:
        raise SpecError(f"{what}: {text!r} is not a size. Write it as 24GB, 16GiB or 800MB.")
    power = " kmgt".index((found[2] or " ").lower())
    return int(number * (1024 if found[3] else 1000) ** power)


def show_size(size: float) -> str:
    """Bytes as people read them, in powers of 1000: ``19.84 GB``, ``512 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= scale:
            value = size / scale
            return f"{value:.2f} {unit}" if unit == "GB" else f"{value:.0f} {unit}"
    return f"{size:.0f} B"
