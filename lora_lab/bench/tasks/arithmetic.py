"""Arithmetic problems as GPT-3 was asked them (arXiv:2005.14165, section 3.9.1), drawn here and always the same.

lm-eval's task YAML beside this file names :func:`problems`; it is read by lm-eval, with or without lora-lab.
"""

import random
from typing import Any

PROBLEMS = 2000
WORDS = {"+": "plus", "-": "minus"}


def problems(digits: int, sign: str, **_: Any) -> dict[str, Any]:
    """2,000 different problems of two numbers below ``10 ** digits``: ``context`` and ``completion`` of each."""
    from datasets import Dataset

    draw = random.Random(f"{digits}{sign}")
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < PROBLEMS:
        pairs[draw.randrange(10**digits), draw.randrange(10**digits)] = None
    rows = [
        {
            "context": f"Question: What is {a} {WORDS[sign]} {b}?\nAnswer:",
            "completion": f" {a + b if sign == '+' else a - b}",
        }
        for a, b in pairs
    ]
    return {"validation": Dataset.from_list(rows)}
