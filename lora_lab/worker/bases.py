"""What runs share: resident base models, tokenised data, and the base model's own scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_lab import data, models
from lora_lab.data import Tokenised
from lora_lab.engine.evaluate import Candidate, evaluate
from lora_lab.files import read_json, write_json
from lora_lab.models import BaseModel
from lora_lab.models.shards import Shards
from lora_lab.packing.paths import Mount
from lora_lab.spec import RunSpec, to_tree
from lora_lab.worker.scoring import base_benchmarks, score_base

BENCHMARKS = ("tasks", "limit", "num_fewshot", "include_path", "task_data")
"""Fields of an evaluation that its benchmark scores depend on; they do not depend on the data."""


@dataclass(frozen=True)
class BaseScores:
    """The untrained base model on a run's held-out split, and its ``scores`` (:class:`~lora_lab.spec.RunResult`)."""

    eval_loss: float
    eval_accuracy: float
    exact_match: float | None
    scores: Mapping[str, float] = field(default_factory=dict)


def device_name(device: str) -> str:
    """``auto`` resolved: the first CUDA device if there is one, else the CPU."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def held_bytes(base: BaseModel) -> int:
    """Bytes that this process holds now on the base's device: allocated on CUDA, resident on a CPU."""
    import psutil
    import torch

    if base.device.type == "cuda":
        return torch.cuda.memory_allocated(base.device)
    return int(psutil.Process().memory_info().rss)


def tokenised(base: BaseModel, spec: RunSpec, loaded: dict[str, Tokenised]) -> Tokenised:
    """The run's data, tokenised once for all runs that share it (``loaded`` is the worker's memory)."""
    dataset = spec.data.at_seed(spec.seed)
    name = json.dumps(to_tree(dataset), sort_keys=True)
    if name not in loaded:
        loaded[name] = data.load(dataset, base.tokenizer, cache=models.cache_folder())
    return loaded[name]


def base_scores(mount: Mount, spec: RunSpec, tokens: Tokenised, folder: Path) -> BaseScores:
    """The base model's scores for runs like ``spec``, computed once per sweep and kept in ``folder/base``."""
    tree = replace(spec, data=spec.data.at_seed(spec.seed)).canonical
    asked = {name: tree["evaluation"].pop(name) for name in BENCHMARKS if name in tree["evaluation"]}
    benchmarks: dict[str, float] = {}
    if asked:
        named = {"model": tree["model"], "evaluation": asked}
        benchmarks = _once(folder, named, lambda: base_benchmarks(mount, spec.evaluation), mount.base.shards)

    def held_out() -> dict[str, Any]:
        split = tokens.evaluation
        (metrics,) = evaluate(mount, [Candidate(mount.nobody, split, 0, spec.evaluation.batch_size)])
        found = score_base(mount, split, spec.evaluation)
        tree: dict[str, Any] = to_tree(BaseScores(metrics.loss, metrics.accuracy, found.exact_match, found.scores))
        return tree

    about = {name: tree[name] for name in ("model", "data", "evaluation")}
    scores = BaseScores(**_once(folder, about, held_out, mount.base.shards))
    return replace(scores, scores={**scores.scores, **benchmarks})


def _once(folder: Path, about: Mapping[str, Any], compute: Callable[[], Any], shards: Shards | None) -> Any:
    """What ``compute`` gives (a JSON tree), kept in ``folder/base`` under ``about``; all ``shards`` compute or none."""
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "base" / f"{name}.json"
    if path.exists() if shards is None else shards.agree(path.exists()):
        return read_json(path)["scores"]
    found = compute()
    if shards is None or shards.first:
        write_json(path, {"of": about, "scores": found})
    return found
