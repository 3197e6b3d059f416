"""taskmix: right answers, the same everywhere, nothing held out is ever trained on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from lora_lab.data import check, examples, family_names
from lora_lab.data.records import Instruction
from lora_lab.data.taskmix.dice import Dice
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec

BYTES_OF_SEED_0 = "f107cbc5115baf4fdb7d6da2244f2bf6bf6d86e7ff3294761efb02dec71d48b8"

MONTH_DAYS = {
    "January": 31,
    "February": 28,
    "March": 31,
    "April": 30,
    "May": 31,
    "June": 30,
    "July": 31,
    "August": 31,
    "September": 30,
    "October": 31,
    "November": 30,
    "December": 31,
}
PAST = {
    **{w + "s": w + "ed" for w in ("walk", "work", "play", "wait", "talk", "cook", "jump", "stay", "look")},
    "dances": "danced",
    "runs": "ran",
    "sings": "sang",
    "sleeps": "slept",
    "stands": "stood",
    "sits": "sat",
    "reads": "read",
    "swims": "swam",
    "eats": "ate",
    "writes": "wrote",
    "drinks": "drank",
}
POSITION = "first|second|third|last"
SMALLER = {
    "m": ("km", "1000"),
    "cm": ("m", "100"),
    "mm": ("cm", "10"),
    "g": ("kg", "1000"),
    "minutes": ("hours", "60"),
    "seconds": ("minutes", "60"),
    "days": ("weeks", "7"),
    "hours": ("days", "24"),
}


def from_roman(numeral: str) -> int:
    values = [dict(zip("IVXLCDM", (1, 5, 10, 50, 100, 500, 1000), strict=True))[sign] for sign in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))


def day_of_year(text: str) -> int:
    day, month = text.split()
    months = list(MONTH_DAYS)
    assert 1 <= int(day) <= MONTH_DAYS[month]
    return sum(MONTH_DAYS[m] for m in months[: months.index(month)]) + int(day)


def minutes(text: str) -> int:
    hours, mins = text.split(":")
    assert len(mins) == 2 and int(mins) < 60 and int(hours) < 24
    return 60 * int(hours) + int(mins)


def number_in(text: str) -> int:
    return int(re.findall(r"\d+", text)[0])


def solve_ranking(r: Instruction) -> str:
    won = [fact.split(" ", 1)[0] for fact in r.input.rstrip(".").split(". ")]
    lost = [fact.rsplit(" ", 1)[1] for fact in r.input.rstrip(".").split(". ")]
    top = r.instruction.split()[2].rstrip("?") in ("best", "oldest", "tallest")
    (answer,) = set(won) - set(lost) if top else set(lost) - set(won)
    return answer


def solve_units(r: Instruction) -> str:
    target = r.instruction.split()[-1].rstrip(".?")
    amount, unit = r.input.split()
    source, factor = SMALLER[target]
    assert unit == source
    whole, _, decimal = amount.partition(".")
    assert len(decimal) <= 1
    tenths = (int(whole) * 10 + int(decimal or 0)) * int(factor)
    assert tenths % 10 == 0
    return f"{tenths // 10} {target}"


def solve_substitution(r: Instruction) -> str:
    _, old, _, new = r.instruction.rstrip(".").split()
    assert r.input.split().count(old) == 1
    return re.sub(rf"\b{old}\b", new, r.input)


def solve_trimming(r: Instruction) -> str:
    return re.sub(r"\w\b", "", r.input) if "last" in r.instruction else re.sub(r"\b\w", "", r.input)


def solve_common(r: Instruction) -> str:
    left, right = r.input.split(" / ")
    (answer,) = set(left.split()) & set(right.split())
    return answer


def solve_date(r: Instruction) -> int:
    sign = 1 if "later" in r.instruction else -1
    return day_of_year(r.input) + sign * number_in(r.instruction)


def solve_past(r: Instruction) -> str:
    return re.sub(r"^(\w+) (\w+)", lambda m: f"{m[1]} {PAST[m[2]]}", r.input)


def words(r: Instruction) -> list[str]:
    return r.input.split()


def wants(r: Instruction, *signs: str) -> bool:
    return any(sign in r.instruction for sign in signs)


SOLVERS = {
    "addition": lambda r: str(sum(map(int, r.input.split("+")))),
    "subtraction": lambda r: str(int(r.input.split("-")[0]) - int(r.input.split("-")[1])),
    "comparison": lambda r: str((max if wants(r, "larger") else min)(map(int, r.input.split(" or ")))),
    "sorting": lambda r: " ".join(sorted(words(r), key=lambda w: int(w) * (-1 if wants(r, "down", "desc") else 1))),
    "sequence": lambda r: str(2 * int(words(r)[3]) - int(words(r)[2])),
    "parity": lambda r: "even" if r.input[-1] in "02468" else "odd",
    "alphabetical": lambda r: " ".join(sorted(words(r))),
    "reversal": lambda r: " ".join(words(r)[::-1]),
    "position": lambda r: words(r)[["first", "second", "third", "last"].index(re.search(POSITION, r.instruction)[0])],
    "initials": lambda r: re.sub(r"(\w)\w*\s?", r"\1", r.input).upper(),
    "spelling": lambda r: re.sub(r"(?<=.)(?=.)", " ", r.input),
    "trimming": solve_trimming,
    "capitals": lambda r: "".join(chr(ord(c) - 32) if c != " " else c for c in r.input),
    "unique": lambda r: " ".join(dict.fromkeys(words(r))),
    "common": solve_common,
    "substitution": solve_substitution,
    "swapping": lambda r: re.sub(r"^(\w+)(.*?)(\w+)$", r"\3\2\1", r.input),
    "past_tense": solve_past,
    "negation": lambda r: re.sub(r" (is|was) ", r" \1 not ", r.input),
    "units": solve_units,
    "ranking": solve_ranking,
    "counting": lambda r: str(Counter(words(r))[(set(re.findall(r"\w+", r.instruction)) & set(words(r))).pop()]),
    "lookup": lambda r: re.search(rf"\b{r.instruction.split()[-1].rstrip('.?')} (\d+)", r.input)[1],
}


@pytest.fixture(scope="module")
def mixed() -> tuple[list[Instruction], list[Instruction]]:
    return examples(DataSpec(train_size=26 * 400, eval_size=26 * 60))


def of_family(mixed: tuple[list[Instruction], list[Instruction]], name: str) -> list[Instruction]:
    return [record for side in mixed for record in side if record.task == name]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_answer_equals_an_independent_solution(mixed, name):
    records = of_family(mixed, name)
    assert len(records) == 460
    for record in records:
        assert record.output == SOLVERS[name](record), record


def test_roman_numerals_read_back_both_ways(mixed):
    records = of_family(mixed, "roman")
    for r in records:
        number, numeral = (r.input, r.output) if r.input.isdigit() else (r.output, r.input)
        assert from_roman(numeral) == int(number), r
        assert not re.search(r"I{4}|X{4}|C{4}|V{2}|L{2}|D{2}|IL|IC|VX|XM", numeral), r
    assert len({r.input.isdigit() for r in records}) == 2


def test_dates_and_times_add_up(mixed):
    for r in of_family(mixed, "date"):
        assert day_of_year(r.output) == solve_date(r), r
        assert (day_of_year(r.input) <= 59) == (day_of_year(r.output) <= 59), f"depends on leap years: {r}"
    for r in of_family(mixed, "clock"):
        assert minutes(r.output) == minutes(r.input) + number_in(r.instruction), r


def test_every_family_is_covered_by_a_solution():
    assert set(SOLVERS) | {"roman", "date", "clock"} == set(family_names())
    assert len(family_names()) == 26


def test_the_families_are_varied(mixed):
    for name in family_names():
        records = of_family(mixed, name)
        assert len({(r.instruction, r.input) for r in records}) == len(records), f"{name} repeats itself early"
        assert len({r.instruction for r in records}) >= 2, f"{name} has one phrasing"
        most_common = Counter(r.output for r in records).most_common(1)[0][1] / len(records)
        assert most_common < 0.6, f"{name} is answered by one constant"


def test_sizes_and_turns_when_nothing_is_said():
    train, held_out = examples(DataSpec())
    assert (len(train), len(held_out)) == (2000, 200)
    counts = Counter(record.task for record in train)
    assert set(counts) == set(family_names())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_no_held_out_question_is_trained_on_whatever_the_seed_or_the_order_of_words():
    def questions(records):
        return {tuple(sorted(record.input.split())) for record in records}

    sides = [examples(DataSpec(seed=seed, train_size=3000, eval_size=1000)) for seed in (0, 1)]
    for train, _ in sides:
        for _, held_out in sides:
            assert not questions(train) & questions(held_out)
    assert {r.input for r in sides[0][0]} != {r.input for r in sides[1][0]}


def test_smaller_sizes_are_prefixes_and_sides_do_not_depend_on_each_other():
    train, held_out = examples(DataSpec(train_size=500, eval_size=100))
    fewer, more_held_out = examples(DataSpec(train_size=200, eval_size=300))
    assert train[:200] == fewer
    assert more_held_out[:100] == held_out


def test_diversity_mixes_nested_families_whose_examples_do_not_change():
    def families(diversity, seed=0):
        return examples(DataSpec(diversity=diversity, seed=seed, train_size=260))[0]

    names = [list(dict.fromkeys(r.task for r in families(n))) for n in (1, 2, 5, 26)]
    assert [len(n) for n in names] == [1, 2, 5, 26]
    assert names[0] == names[1][:1] and names[1] == names[2][:2] and names[2] == names[3][:5]
    alone, mixed = families(1), families(26)
    assert [r for r in mixed if r.task == names[0][0]] == alone[:10]
    assert {r.task for r in families(5, seed=1)} != set(names[2])


def test_tasks_names_the_families():
    train, held_out = examples(DataSpec(tasks=("units", "roman"), train_size=10, eval_size=4))
    assert [r.task for r in train] == ["units", "roman"] * 5
    assert [r.task for r in held_out] == ["units", "roman"] * 2


def test_a_family_that_is_used_up_repeats_itself_but_never_crosses_over():
    train, held_out = examples(DataSpec(tasks=("units",), train_size=9000, eval_size=1500))
    assert len(train) == 9000 and len({(r.instruction, r.input) for r in train}) < 9000
    assert not {r.input for r in train} & {r.input for r in held_out}


SCRIPT = """
import hashlib, json
from lora_lab.data import examples
from lora_lab.spec import DataSpec
text = json.dumps([[r.parts for r in side] for side in examples(DataSpec())])
print(hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_the_bytes_are_the_same_in_every_process_and_for_ever(hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    out = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == BYTES_OF_SEED_0


def test_the_same_bytes_in_this_process():
    text = json.dumps([[record.parts for record in side] for side in examples(DataSpec())])
    assert hashlib.sha256(text.encode()).hexdigest() == BYTES_OF_SEED_0


def test_dice_reach_every_face_and_no_other():
    dice = Dice("x")
    assert {dice.between(2, 5) for _ in range(200)} == {2, 3, 4, 5}
    assert {dice.below(3) for _ in range(200)} == {0, 1, 2}
    assert sorted(dice.draw("abcd", 4)) == list("abcd")
    assert Dice("x").draw(range(100), 5) != Dice("y").draw(range(100), 5)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (DataSpec(tasks=("unitts",)), "unknown task 'unitts'; did you mean 'units'?"),
        (DataSpec(tasks=("units", "units")), "'units' is listed twice"),
        (DataSpec(diversity=27), "data.diversity=27: there are 26 task families"),
    ],
)
def test_bad_choices_are_refused(spec, said):
    for refuse in (check, examples):
        with pytest.raises(DataError, match=re.escape(said)):
            refuse(spec)
