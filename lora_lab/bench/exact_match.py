"""Exact match: the share of held-out prompts whose greedy answer is the reference answer.

Both sides are compared without surrounding white space, and in full: a right prefix is a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_lab.bench.generate import Prompts, generate
from lora_lab.data import Split
from lora_lab.methods import Attachment
from lora_lab.packing.paths import Mount
from lora_lab.spec import EvaluationSpec


@dataclass(frozen=True)
class ExactMatch:
    """Share of right answers of ``n``, overall and by task family."""

    share: float
    n: int
    by_task: dict[str, float]


def exact_match(
    mount: Mount, attachments: Sequence[Attachment | None], split: Split, spec: EvaluationSpec
) -> list[ExactMatch]:
    """Score several adapters (``None``: the base model) on the first held-out prompts, all in one pack."""
    n = min(len(split), spec.exact_match_size or len(split))
    lanes = [Prompts(attachment, split.prompts[:n]) for attachment in attachments]
    scores = []
    for answers in generate(mount, lanes, spec.max_new_tokens, spec.batch_size, spec.stop):
        right = [a.strip() == b.strip() for a, b in zip(answers, split.answers[:n], strict=True)]
        tasks: dict[str, list[bool]] = {}
        for task, hit in zip(split.tasks[:n], right, strict=True):
            tasks.setdefault(task, []).append(hit)
        by_task = {task: sum(hits) / len(hits) for task, hits in sorted(tasks.items())}
        scores.append(ExactMatch(share=sum(right) / max(1, n), n=n, by_task=by_task))
    return scores
