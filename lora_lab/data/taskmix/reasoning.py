"""Families that need a fact put together from several: ranking, counting, table look-up."""

from __future__ import annotations

from lora_lab.data.taskmix.dice import Dice
from lora_lab.data.taskmix.vocabulary import NAMES, WORDS

_RELATIONS = (
    ("beats", "Who is best?", "Who is worst?"),
    ("is older than", "Who is oldest?", "Who is youngest?"),
    ("is taller than", "Who is tallest?", "Who is shortest?"),
)


def ranking(dice: Dice) -> tuple[str, str, str]:
    """``Ann beats Bob. Tom beats Ann.`` Who is best? -> ``Tom``."""
    first, second, third = dice.draw(NAMES, 3)
    relation, top, bottom = dice.pick(_RELATIONS)
    facts = dice.draw((f"{first} {relation} {second}.", f"{second} {relation} {third}."), 2)
    if dice.below(2):
        return top, " ".join(facts), first
    return bottom, " ".join(facts), third


def counting(dice: Dice) -> tuple[str, str, str]:
    """How often is cat in ``cat dog cat sun``? -> ``2``."""
    target, *others = dice.draw(WORDS, 4)
    times = dice.between(1, 4)
    rest = [dice.pick(others) for _ in range(dice.between(1, 3))]
    text = dice.draw([target] * times + rest, times + len(rest))
    return dice.pick((f"Count {target}.", f"How often is {target} there?")), " ".join(text), str(times)


def lookup(dice: Dice) -> tuple[str, str, str]:
    """Find Bob in ``Ann 47, Bob 12, Eva 30`` -> ``12``."""
    names = dice.draw(NAMES, 3)
    values = dice.draw(range(10, 100), 3)
    i = dice.below(3)
    table = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    return dice.pick((f"Find {names[i]}.", f"What has {names[i]}?")), table, str(values[i])
