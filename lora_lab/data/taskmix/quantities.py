"""Families about quantities of the world: units, dates, times of day."""

from __future__ import annotations

import datetime

from lora_lab.data.taskmix.dice import Dice
from lora_lab.data.taskmix.vocabulary import MONTHS

_UNITS = (
    ("km", "m", 1000),
    ("m", "cm", 100),
    ("cm", "mm", 10),
    ("kg", "g", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("weeks", "days", 7),
    ("days", "hours", 24),
)


def units(dice: Dice) -> tuple[str, str, str]:
    """``7 m`` in cm -> ``700 cm``; lengths and weights also with one decimal."""
    big, small, factor = dice.pick(_UNITS)
    tenths = 10 * dice.between(2, 60)
    if factor % 10 == 0 and factor != 60:
        tenths = dice.between(11, 999)
    whole, decimal = divmod(tenths, 10)
    amount = f"{whole}.{decimal}" if decimal else str(whole)
    return dice.pick((f"Convert to {small}.", f"In {small}?")), f"{amount} {big}", f"{tenths * factor // 10} {small}"


def date(dice: Dice) -> tuple[str, str, str]:
    """5 days after ``28 March`` -> ``2 April``. No answer depends on leap years: none goes over the end of February."""
    while True:
        start = datetime.date(2001, 1, 1) + datetime.timedelta(days=dice.below(365))
        days = dice.between(2, 20)
        later = bool(dice.below(2))
        end = start + datetime.timedelta(days=days if later else -days)
        if start.year == end.year and (start.month <= 2) == (end.month <= 2):
            break
    instruction = f"{days} days later?" if later else f"{days} days earlier?"
    return instruction, f"{start.day} {MONTHS[start.month - 1]}", f"{end.day} {MONTHS[end.month - 1]}"


def clock(dice: Dice) -> tuple[str, str, str]:
    """``9:40`` plus 35 minutes -> ``10:15``, on a 24-hour clock, within one day."""
    start, minutes = dice.below(23 * 60), 5 * dice.between(1, 11)
    end = start + minutes
    return (
        dice.pick((f"Add {minutes} minutes.", f"{minutes} minutes later?")),
        f"{start // 60}:{start % 60:02d}",
        f"{end // 60}:{end % 60:02d}",
    )
