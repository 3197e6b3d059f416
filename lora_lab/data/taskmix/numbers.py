"""Families about numbers: arithmetic, order, sequences, numerals."""

from __future__ import annotations

from lora_lab.data.taskmix.dice import Dice

_ROMAN = (
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
)


def addition(dice: Dice) -> tuple[str, str, str]:
    """``34 + 25`` -> ``59``."""
    a, b = dice.between(1, 99), dice.between(1, 99)
    return dice.pick(("Add.", "Find the sum.", "What is the sum?")), f"{a} + {b}", str(a + b)


def subtraction(dice: Dice) -> tuple[str, str, str]:
    """``81 - 27`` -> ``54``; never below 0."""
    a, b = dice.between(1, 99), dice.between(1, 99)
    a, b = max(a, b), min(a, b)
    return dice.pick(("Subtract.", "Find the difference.", "What is left?")), f"{a} - {b}", str(a - b)


def comparison(dice: Dice) -> tuple[str, str, str]:
    """Which is larger (or smaller), ``482 or 917``?"""
    a, b = dice.draw(range(10, 1000), 2)
    if dice.below(2):
        return dice.pick(("Which is larger?", "Pick the larger number.")), f"{a} or {b}", str(max(a, b))
    return dice.pick(("Which is smaller?", "Pick the smaller number.")), f"{a} or {b}", str(min(a, b))


def sorting(dice: Dice) -> tuple[str, str, str]:
    """``45 3 17`` ascending -> ``3 17 45``."""
    numbers = dice.draw(range(1, 100), 3)
    text = " ".join(map(str, numbers))
    if dice.below(2):
        return dice.pick(("Sort ascending.", "Sort up.")), text, " ".join(map(str, sorted(numbers)))
    return dice.pick(("Sort descending.", "Sort down.")), text, " ".join(map(str, sorted(numbers, reverse=True)))


def sequence(dice: Dice) -> tuple[str, str, str]:
    """``3 6 9 12`` -> ``15``: the next term of an arithmetic sequence, rising or falling, never below 0."""
    step = dice.between(1, 12)
    start = dice.between(0, 99)
    terms = [start + i * step for i in range(5)]
    if dice.below(2):
        terms.reverse()
    *shown, answer = terms
    return dice.pick(("Continue.", "What comes next?", "Give the next number.")), " ".join(map(str, shown)), str(answer)


def parity(dice: Dice) -> tuple[str, str, str]:
    """``37`` -> ``odd``."""
    n = dice.between(10, 9999)
    return dice.pick(("Even or odd?", "Say even or odd.")), str(n), "odd" if n % 2 else "even"


def roman(dice: Dice) -> tuple[str, str, str]:
    """``47`` -> ``XLVII``, or back."""
    n = dice.between(1, 1999)
    numeral, rest = "", n
    for value, sign in _ROMAN:
        while rest >= value:
            numeral += sign
            rest -= value
    if dice.below(2):
        return dice.pick(("Write in Roman numerals.", "Make it Roman.")), str(n), numeral
    return dice.pick(("Write in digits.", "Read the numeral.")), numeral, str(n)
