"""``taskmix``: instruction/response tasks with exact answers, made by program.

Each *family* is a function of :class:`Dice` that gives ``(instruction, input, answer)``. A family's examples depend on
the seed and its name only, never on which other families are mixed in, so the mixes of ``diversity`` 1, 2, 3, … are
nested. Prompts are short and answers have one to eight tokens, because the set is there to be trained on a CPU.

Train and held-out examples are disjoint by construction: a question belongs to one side for every seed and size,
decided by a hash of the words of its input in any order (so the mirror ``25 + 34`` of ``34 + 25``, another phrasing of
the same question, or the same list in another order never crosses over).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import cycle, islice

from lora_lab.data.records import Instruction
from lora_lab.data.taskmix.dice import Dice
from lora_lab.data.taskmix.numbers import addition, comparison, parity, roman, sequence, sorting, subtraction
from lora_lab.data.taskmix.quantities import clock, date, units
from lora_lab.data.taskmix.reasoning import counting, lookup, ranking
from lora_lab.data.taskmix.rules import negation, past_tense, substitution, swapping
from lora_lab.data.taskmix.words import (
    alphabetical,
    capitals,
    common,
    initials,
    position,
    reversal,
    spelling,
    trimming,
    unique,
)
from lora_lab.errors import DataError, nearest
from lora_lab.spec import DataSpec

Family = Callable[[Dice], tuple[str, str, str]]

FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        addition,
        subtraction,
        comparison,
        sorting,
        sequence,
        parity,
        roman,
        alphabetical,
        reversal,
        position,
        initials,
        spelling,
        trimming,
        capitals,
        unique,
        common,
        substitution,
        swapping,
        past_tense,
        negation,
        units,
        date,
        clock,
        ranking,
        counting,
        lookup,
    )
}
"""Every family by name."""

TRAIN_SIZE, EVAL_SIZE = 2000, 200
"""Sizes where the spec gives none."""

_HELD_OUT = 8  # one question in eight is held out
_REPEATS = 20  # draws without a new prompt after which a family counts as used up and a prompt may come again


def family_names() -> tuple[str, ...]:
    """The names that ``data.tasks`` may list."""
    return tuple(FAMILIES)


def chosen(spec: DataSpec) -> tuple[str, ...]:
    """The families that ``spec`` mixes: its ``tasks``, or ``diversity`` of all in an order drawn by its seed.

    Raises:
        DataError: an unknown or repeated name, or more families than there are.
    """
    for i, name in enumerate(spec.tasks):
        if name not in FAMILIES:
            raise DataError(
                f"data.tasks: unknown task {name!r}{nearest(name, FAMILIES)} Known: {', '.join(sorted(FAMILIES))}."
            )
        if name in spec.tasks[:i]:
            raise DataError(f"data.tasks: {name!r} is listed twice; list each task once.")
    if spec.tasks:
        return spec.tasks
    wanted = len(FAMILIES) if spec.diversity is None else spec.diversity
    if wanted > len(FAMILIES):
        raise DataError(f"data.diversity={wanted}: there are {len(FAMILIES)} task families; give at most that.")
    return tuple(sorted(FAMILIES, key=lambda name: hashlib.sha256(f"{spec.seed}/{name}".encode()).digest())[:wanted])


def generate(spec: DataSpec) -> tuple[list[Instruction], list[Instruction]]:
    """Train and held-out examples, the families taking turns; a smaller size is a prefix of a larger one.

    Raises:
        DataError: see :func:`chosen`.
    """
    names = chosen(spec)
    return (
        _take(spec, names, held_out=False, count=spec.train_size or TRAIN_SIZE),
        _take(spec, names, held_out=True, count=spec.eval_size or EVAL_SIZE),
    )


def held_out(text: str) -> bool:
    """Whether questions with this input are for evaluation only."""
    words = " ".join(sorted(text.split()))
    return hashlib.sha256(words.encode()).digest()[0] % _HELD_OUT == 0


def _take(spec: DataSpec, names: tuple[str, ...], *, held_out: bool, count: int) -> list[Instruction]:
    streams = [_stream(spec.seed, name, held_out) for name in names]
    return [next(stream) for stream in islice(cycle(streams), count)]


def _stream(seed: int, name: str, for_evaluation: bool) -> Iterator[Instruction]:
    """Endless examples of one family on one side; prompts come again only when the family is used up."""
    family = FAMILIES[name]
    dice = Dice(f"{seed}/{name}/{'held out' if for_evaluation else 'train'}")
    seen: set[tuple[str, str]] = set()
    repeats = 0
    while True:
        instruction, text, answer = family(dice)
        if held_out(text) != for_evaluation:
            continue
        if (instruction, text) in seen and repeats < _REPEATS:
            repeats += 1
            continue
        repeats = 0
        seen.add((instruction, text))
        yield Instruction(instruction, text, answer, name)
