"""How well weighted sums of adapters do on held-out data, task by task: many sums in one pass over one base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lora_lab import data, models
from lora_lab.adapters.references import Reference
from lora_lab.bench.exact_match import exact_match
from lora_lab.engine.evaluate import Candidate, evaluate
from lora_lab.methods import Attachment
from lora_lab.methods import load as load_adapter
from lora_lab.methods.combining import combined, lora_of, low_rank
from lora_lab.models import BaseModel
from lora_lab.packing.paths import Mount
from lora_lab.spec import RunSpec

Weights = Mapping[str, float]
"""A weight by reference's name; who is not named is left out."""


def combination_scores(
    base: BaseModel, references: Sequence[Reference], sums: Sequence[Weights], spec: RunSpec, way: str = "sum"
) -> pd.DataFrame:
    """One row a sum and task: ``sum, task, eval_loss, exact_match``, and a column ``weight.<name>`` an adapter.

    The sums are scored on the held-out data of ``spec``, all tasks together (``task`` is ``all`` then) and each for
    itself; ``eval_loss`` is in nats a token. The empty sum is the base model. Adapters must be low-rank updates.

    Raises:
        MethodError, CheckpointError, DataError: adapters or data that cannot be used.
    """
    split = data.load(spec.data.at_seed(spec.seed), base.tokenizer, cache=models.cache_folder()).evaluation
    sets = {
        one.name: low_rank(load_adapter(one.folder, base), one.name) for one in references if one.folder is not None
    }
    made: list[Attachment | None] = []
    for weights in sums:
        used = {name: weight for name, weight in weights.items() if weight != 0}
        found = combined([sets[name] for name in used], list(used.values()), way) if used else None
        made.append(None if found is None else lora_of(base, found))
    mount = Mount(base)
    try:
        for attachment in made:
            if attachment is not None:
                mount.mount(attachment)
        parts = {task: split.of_task(task) for task in dict.fromkeys(sorted(split.tasks))}
        size = spec.evaluation.batch_size
        losses = {
            task: evaluate(mount, [Candidate(one, part, 0, size) for one in made]) for task, part in parts.items()
        }
        matches = exact_match(mount, made, split, spec.evaluation)
    finally:
        mount.unmount()
    rows: list[dict[str, object]] = []
    for i, (weights, match) in enumerate(zip(sums, matches, strict=True)):
        name = " + ".join(f"{weight:g} {one}" for one, weight in weights.items() if weight != 0) or "base"
        columns: dict[str, object] = {f"weight.{one.name}": float(weights.get(one.name, 0.0)) for one in references}
        mine = {task: found[i] for task, found in losses.items()}
        tokens = sum(one.tokens for one in mine.values())
        whole = sum(one.loss * one.tokens for one in mine.values()) / max(1, tokens)
        rows.append({"sum": name, "task": "all", "eval_loss": whole, "exact_match": match.share} | columns)
        rows += [
            {"sum": name, "task": task, "eval_loss": one.loss, "exact_match": match.by_task.get(task)} | columns
            for task, one in mine.items()
        ]
    return pd.DataFrame(rows)
