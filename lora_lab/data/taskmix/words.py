"""Families about words: order, selection, letters."""

from __future__ import annotations

from lora_lab.data.taskmix.dice import Dice
from lora_lab.data.taskmix.vocabulary import WORDS

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_POSITIONS = (("first", 0), ("second", 1), ("third", 2), ("last", -1))


def alphabetical(dice: Dice) -> tuple[str, str, str]:
    """``sun cat map`` -> ``cat map sun``."""
    words = dice.draw(WORDS, 3)
    return dice.pick(("Sort by alphabet.", "Put in ABC order.")), " ".join(words), " ".join(sorted(words))


def reversal(dice: Dice) -> tuple[str, str, str]:
    """``red cat sun`` -> ``sun cat red``."""
    words = dice.draw(WORDS, dice.between(3, 4))
    return dice.pick(("Reverse the words.", "Say it backwards.")), " ".join(words), " ".join(reversed(words))


def position(dice: Dice) -> tuple[str, str, str]:
    """The second of ``red cat sun map`` -> ``cat``."""
    words = dice.draw(WORDS, 4)
    name, at = dice.pick(_POSITIONS)
    return dice.pick((f"Give the {name} word.", f"Which word is {name}?")), " ".join(words), words[at]


def initials(dice: Dice) -> tuple[str, str, str]:
    """``red cat sun`` -> ``RCS``."""
    words = dice.draw(WORDS, 3)
    answer = "".join(word[0] for word in words).upper()
    return dice.pick(("Give the initials.", "Make an acronym.")), " ".join(words), answer


def spelling(dice: Dice) -> tuple[str, str, str]:
    """``tamor`` -> ``t a m o r``; the words are made up, so that there are many."""
    letters = [dice.pick(_CONSONANTS), dice.pick(_VOWELS), dice.pick(_CONSONANTS), dice.pick(_VOWELS)]
    if dice.below(2):
        letters.append(dice.pick(_CONSONANTS))
    return dice.pick(("Spell it.", "Spell the word.")), "".join(letters), " ".join(letters)


def trimming(dice: Dice) -> tuple[str, str, str]:
    """``stone`` without its last letter -> ``ston``; two words, both cut."""
    words = dice.draw(WORDS, 2)
    text = " ".join(words)
    if dice.below(2):
        return dice.pick(("Drop each last letter.", "Cut the last letters.")), text, " ".join(w[:-1] for w in words)
    return dice.pick(("Drop each first letter.", "Cut the first letters.")), text, " ".join(w[1:] for w in words)


def capitals(dice: Dice) -> tuple[str, str, str]:
    """``red cat`` -> ``RED CAT``."""
    text = " ".join(dice.draw(WORDS, 2))
    return dice.pick(("Write in capitals.", "Make it upper case.")), text, text.upper()


def unique(dice: Dice) -> tuple[str, str, str]:
    """``cat dog cat sun`` -> ``cat dog sun``: repeated words are removed, the first of them stays."""
    words = dice.draw(WORDS, 3)
    doubled = list(words)
    i = dice.below(3)
    doubled.insert(dice.between(i + 1, 3), words[i])
    return dice.pick(("Remove repeated words.", "Keep each word once.")), " ".join(doubled), " ".join(words)


def common(dice: Dice) -> tuple[str, str, str]:
    """The word in both of ``red cat sun / sky cat map`` -> ``cat``."""
    words = dice.draw(WORDS, 5)
    left, right = words[:3], [words[dice.below(3)], *words[3:]]
    answer = right[0]
    i = dice.below(3)
    right[0], right[i] = right[i], right[0]
    return (
        dice.pick(("Which word is shared?", "Find the common word.")),
        f"{' '.join(left)} / {' '.join(right)}",
        answer,
    )
