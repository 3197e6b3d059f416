"""The training files of the two sections that are about data: made from the built-in tasks, or from real data.

Q1 compares a small clean file with one fifty times as large of which a quarter has another example's answer. Q2 trains
on instructions in which no digit occurs and is scored on sums, written as OpenAI's arithmetic files are
(*Language Models are Few-Shot Learners*, arXiv:2005.14165).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lora_lab.article.budgets import BUILT_IN, alpaca_in
from lora_lab.article.section import Part
from lora_lab.data.records import Instruction
from lora_lab.data.taskmix import generate
from lora_lab.errors import DataError
from lora_lab.files import write_text
from lora_lab.spec import DataSpec

CURATED = 128
"""Clean examples; the synthetic file has :data:`TIMES` as many."""
TIMES = 50
WRONG = 0.25
"""The share of the synthetic file that has another example's answer."""
HELD_OUT = 96
SUMS = 200
WITHOUT_NUMBERS = (
    *("alphabetical", "reversal", "initials", "trimming", "capitals", "unique", "common"),
    *("substitution", "swapping", "past_tense", "negation"),
)
"""Built-in tasks in which no arithmetic is done."""
ARITHMETIC = ("two_digit_addition.jsonl", "two_digit_subtraction.jsonl")

Record = Mapping[str, str]


def prepare(part: Part, folder: Path, data: str = BUILT_IN, *, scale: float = 1.0) -> None:
    """Write the files that ``part`` reads into ``folder``, unless they are there; other parts need none.

    ``data`` is ``taskmix``, or a folder with an Alpaca file and ``arithmetic/``; ``scale`` shrinks the files.

    Raises:
        DataError: the folder lacks a file, or no example without a digit is left.
    """
    if part.name == "q1_data":
        _prepare_quality(folder, scale)
    elif part.name == "q2_domain":
        _prepare_sums(folder, data, scale)


def _prepare_quality(folder: Path, scale: float) -> None:
    few = max(8, round(CURATED * scale))
    train, held_out = generate(DataSpec(train_size=TIMES * few, eval_size=max(8, round(HELD_OUT * scale))))
    dice = random.Random("q1")
    wrong = [dice.choice(train).output if dice.random() < WRONG else one.output for one in train]
    _write(folder / "curated.json", map(_alpaca, train[:few]))
    _write(folder / "synthetic.json", [{**_alpaca(one), "output": a} for one, a in zip(train, wrong, strict=True)])
    _write(folder / "clean.json", map(_alpaca, held_out))


def _prepare_sums(folder: Path, data: str, scale: float) -> None:
    real = Path(data).expanduser() if data != BUILT_IN else None
    examples = _built_in() if real is None or not real.is_dir() else _real(real)
    if not examples:
        raise DataError(f"{data}: every example has a digit in it; Q2 needs instructions without arithmetic.")
    sums = _sums() if real is None or not (real / "arithmetic").is_dir() else _real_sums(real / "arithmetic")
    _write(folder / "instructions.json", examples[: max(64, round(2000 * scale))])
    _write(folder / "sums.json", sums[: max(8, round(SUMS * scale))])


def _built_in() -> list[Record]:
    train, _ = generate(DataSpec(tasks=WITHOUT_NUMBERS, train_size=2000, eval_size=1))
    return [_completion(one.instruction, one.input, one.output) for one in train]


def _real(folder: Path) -> list[Record]:
    rows = json.loads(alpaca_in(folder).read_text(encoding="utf-8"))
    texts = [(row["instruction"], row.get("input", ""), row["output"]) for row in rows]
    return [_completion(*one) for one in texts if one[2].strip() and not any(map(_has_digit, one))]


def _sums() -> list[Record]:
    dice = random.Random("q2")
    found: dict[str, str] = {}
    while len(found) < SUMS:
        a, b, plus = dice.randrange(100), dice.randrange(100), dice.random() < 0.5
        question = f"\n\nQ: What is {a} {'plus' if plus else 'minus'} {b}?\n\nA:"
        found[question] = f" {a + b if plus else a - b}"
    return [{"prompt": prompt, "completion": answer} for prompt, answer in found.items()]


def _real_sums(folder: Path) -> list[Record]:
    rows: list[Record] = []
    for name in ARITHMETIC:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing; --data for Q2 names a folder with arithmetic/{name} in it.")
        lines = path.read_text(encoding="utf-8").splitlines()[: SUMS // len(ARITHMETIC)]
        rows += [{"prompt": row["context"], "completion": row["completion"]} for row in map(json.loads, lines)]
    return rows


def _alpaca(one: Instruction) -> Record:
    return {"instruction": one.instruction, "input": one.input, "output": one.output}


def _completion(instruction: str, text: str, answer: str) -> Record:
    prompt = "\n".join(part for part in (instruction, text) if part)
    return {"prompt": f"### Instruction:\n{prompt}\n\n### Response:\n", "completion": answer}


def _has_digit(text: str) -> bool:
    return re.search(r"\d", text) is not None


def _write(path: Path, rows: Iterable[Record]) -> None:
    text = json.dumps(list(rows), indent=0) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
