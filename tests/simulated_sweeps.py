"""Results frames of sweeps whose truth is known, made without a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_lab.spec import Space, all_masks

Point = Mapping[str, Any]


def frame_of(
    points: Sequence[Point],
    truth: Callable[[Point], float],
    *,
    space: Mapping[str, Any] | None = None,
    seeds: int = 2,
    noise: float = 0.02,
    rng: int | np.random.Generator = 0,
    sampler: str = "random",
    **columns: Any,
) -> pd.DataFrame:
    """One row a run as :func:`load_results` gives; ``eval_loss`` is ``truth(point)`` plus normal noise."""
    rng = np.random.default_rng(rng)
    rows = []
    for trial, point in enumerate(points):
        rank = point.get("method.r", 8)
        for seed in range(seeds):
            loss = truth(point) + rng.normal(0, noise)
            rows.append(
                {
                    "sweep": "simulated",
                    "trial": trial,
                    "run": f"t{trial:04d}-s{seed}",
                    "seed": seed,
                    "outcome": "COMPLETED",
                    "key": f"{trial}-{seed}",
                    **point,
                    "eval_loss": loss,
                    "base_eval_loss": 3.0,
                    "best_eval_loss": loss,
                    "train_loss": loss - 0.1,
                    "exact_match": 0.3,
                    "base_exact_match": 0.0,
                    "trainable_parameters": 10_000 * rank * max(1, len(point.get("method.roles", (1,)))),
                    "lane_bytes": 160_000 * rank,
                    "peak_bytes": 10**9,
                    "seconds": 10 + rank / 10 + rng.normal(0, 0.1),
                    "adapter": None,
                    "message": None,
                }
            )
    frame = pd.DataFrame(rows).assign(**columns)
    frame.attrs["sweep"] = {
        "name": "simulated",
        "space": dict(
            space or {path: {"choices": list(dict.fromkeys(point[path] for point in points))} for path in points[0]}
        ),
        "objective": {"metric": "eval_loss", "direction": "minimize"},
        "sampler": sampler,
        "trials": len(points),
        "repeats": seeds,
    }
    return frame


def large(configurations: int, seed: int = 0) -> pd.DataFrame:
    """A sampled sweep over rank, learning rate, dropout, optimizer and masks, with two seeds."""
    rng = np.random.default_rng(seed)
    space = {
        "method.r": {"choices": [2, 4, 8, 16, 32, 64]},
        "optimizer.lr": {"float": {"low": 1e-5, "high": 1e-2, "log": True}},
        "method.dropout": {"choices": [0.0, 0.05, 0.1]},
        "optimizer.name": {"choices": ["adamw", "sgd", "lion"]},
        "method.roles": {"masks": "all"},
    }
    masks = all_masks()
    points = [
        {
            "method.r": int(rng.choice([2, 4, 8, 16, 32, 64])),
            "optimizer.lr": float(np.exp(rng.uniform(np.log(1e-5), np.log(1e-2)))),
            "method.dropout": float(rng.choice([0.0, 0.05, 0.1])),
            "optimizer.name": str(rng.choice(["adamw", "sgd", "lion"])),
            "method.roles": masks[rng.integers(64)],
        }
        for _ in range(configurations)
    ]

    def truth(point: Point) -> float:
        rate = 0.02 * (np.log(point["optimizer.lr"]) - np.log(1e-3)) ** 2
        projection = 0.03 * ("projection" in point["method.roles"])
        return float(
            2 - 0.05 * np.log2(point["method.r"]) + rate - projection + 0.1 * (point["optimizer.name"] == "sgd")
        )

    return frame_of(points, truth, space=Space.from_tree(space).to_tree(), rng=rng)


def curves_of(folder: Path, runs: list[str], steps: int = 20) -> None:
    """A spool with ``steps`` steps and five evaluations a run."""
    for run in runs:
        lines = [json.dumps({"kind": "step", "step": i, "loss": 2 - i / steps}) for i in range(1, steps + 1)]
        lines += [json.dumps({"kind": "evaluation", "step": i * steps // 4, "loss": 2.1 - i / 5}) for i in range(5)]
        path = folder / "runs" / run / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
