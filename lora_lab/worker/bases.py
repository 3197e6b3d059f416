"""What runs share: resident base models, tokenised data, and the base model's own scores."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from lora_lab import data, models
from lora_lab.bench.exact_match import exact_match
from lora_lab.data import Tokenised
from lora_lab.engine.evaluate import Candidate, evaluate
from lora_lab.files import read_json, write_json
from lora_lab.models import BaseModel
from lora_lab.packing.paths import Mount
from lora_lab.spec import RunSpec, to_tree


@dataclass(frozen=True)
class BaseScores:
    """The untrained base model on a run's held-out split."""

    eval_loss: float
    eval_accuracy: float
    exact_match: float | None


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
    kept = {name: tree[name] for name in ("model", "data", "evaluation")}
    name = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "base" / f"{name}.json"
    if path.exists():
        return BaseScores(**read_json(path)["scores"])
    split = tokens.evaluation
    (metrics,) = evaluate(mount, [Candidate(None, split, 0, spec.evaluation.batch_size)])
    match = None
    if spec.evaluation.exact_match and split.generative:
        match = exact_match(mount, [None], split, spec.evaluation)[0].share
    scores = BaseScores(metrics.loss, metrics.accuracy, match)
    write_json(path, {"of": kept, "scores": to_tree(scores)})
    return scores
