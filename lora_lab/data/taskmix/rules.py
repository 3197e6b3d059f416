"""Families that rewrite a text by a rule."""

from __future__ import annotations

from lora_lab.data.taskmix.dice import Dice
from lora_lab.data.taskmix.vocabulary import NAMES, WORDS

_VERBS = (
    ("walks", "walked"),
    ("runs", "ran"),
    ("works", "worked"),
    ("plays", "played"),
    ("sings", "sang"),
    ("waits", "waited"),
    ("sleeps", "slept"),
    ("stands", "stood"),
    ("talks", "talked"),
    ("sits", "sat"),
    ("cooks", "cooked"),
    ("reads", "read"),
    ("swims", "swam"),
    ("eats", "ate"),
    ("writes", "wrote"),
    ("jumps", "jumped"),
    ("drinks", "drank"),
    ("stays", "stayed"),
    ("looks", "looked"),
    ("dances", "danced"),
)
_PLACES = ("at home", "in town", "by the sea", "in the park", "at school", "at work", "in the house", "by the lake")
_ADVERBS = ("alone", "again", "quickly", "slowly", "happily", "quietly", "often", "well")
_ADJECTIVES = """
big small old new red blue green black white heavy light warm cold dry wet clean dirty empty full open closed soft
hard long short tall round flat cheap safe
"""
ADJECTIVES = tuple(_ADJECTIVES.split())


def substitution(dice: Dice) -> tuple[str, str, str]:
    """Replace sun with dog in ``cat sun map`` -> ``cat dog map``."""
    words = dice.draw(WORDS, 4)
    *text, new = words
    i = dice.below(3)
    old = text[i]
    instruction = dice.pick((f"Replace {old} with {new}.", f"Change {old} to {new}."))
    answer = [*text[:i], new, *text[i + 1 :]]
    return instruction, " ".join(text), " ".join(answer)


def swapping(dice: Dice) -> tuple[str, str, str]:
    """The first and the last of ``cat sun map hat`` change places -> ``hat sun map cat``."""
    words = dice.draw(WORDS, dice.between(3, 4))
    answer = [words[-1], *words[1:-1], words[0]]
    return dice.pick(("Swap first and last.", "Exchange the outer words.")), " ".join(words), " ".join(answer)


def past_tense(dice: Dice) -> tuple[str, str, str]:
    """``Tom walks home alone.`` -> ``Tom walked home alone.``"""
    name, (now, then) = dice.pick(NAMES), dice.pick(_VERBS)
    rest = f"{dice.pick(_ADVERBS)} {dice.pick(_PLACES)}"
    return (
        dice.pick(("Put in the past tense.", "Say it in the past.")),
        f"{name} {now} {rest}.",
        f"{name} {then} {rest}.",
    )


def negation(dice: Dice) -> tuple[str, str, str]:
    """``The box is heavy.`` -> ``The box is not heavy.``"""
    noun, verb, adjective = dice.pick(WORDS), dice.pick(("is", "was")), dice.pick(ADJECTIVES)
    return (
        dice.pick(("Negate.", "Say the opposite with not.")),
        f"The {noun} {verb} {adjective}.",
        f"The {noun} {verb} not {adjective}.",
    )
