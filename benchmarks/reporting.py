"""How long `lora-lab report` takes over many runs, and how large its page is.

A sweep of as many runs as wanted is made up: rank, learning rate, dropout, optimizer and masks drawn at random, two
seeds each, with planted effects, and for every run a folder with its result and its learning curve. Then the command
line reports on it as a user's does, each time in a process of its own: on the screen, as a page (its figures drawn), as
one CSV row a run. Seconds are of the whole command, from its start to its end.

    python benchmarks/reporting.py [--runs 1000 10000] [--rounds 3]

Results go to benchmarks/results/reporting.json with the machine they ran on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import facts

from lora_lab.files import write_json
from lora_lab.spec import ModelSpec, Outcome, RunResult, RunSpec, Space, Strategy, Sweep, all_masks, pairs, run_id

SPACE = {
    "method.r": {"choices": [2, 4, 8, 16, 32, 64]},
    "optimizer.lr": {"float": {"low": 1e-5, "high": 1e-2, "log": True}},
    "method.dropout": {"choices": [0.0, 0.05, 0.1]},
    "optimizer.name": {"choices": ["adamw", "sgd", "lion"]},
    "method.roles": {"masks": "all"},
}
SEEDS = 2
STEPS, EVALUATIONS = 50, 5
RESULTS = Path(__file__).parent / "results" / "reporting.json"


def fill(folder: Path, runs: int, rng: random.Random) -> None:
    """Write a sweep of ``runs`` settled runs."""
    base = RunSpec(model=ModelSpec("made_up", source="random", config=pairs({"model_type": "llama"})))
    trials = runs // SEEDS
    sweep = Sweep(
        "made_up", base, Space.from_tree(SPACE), sampler=Strategy("random"), trials=trials, repeats=SEEDS
    )  # fmt: skip
    write_json(folder / "sweep.json", {**sweep.to_tree(), "key": sweep.key})
    for trial in range(trials):
        point: dict[str, Any] = {
            "method.r": rng.choice([2, 4, 8, 16, 32, 64]),
            "optimizer.lr": 10 ** rng.uniform(-5, -2),
            "method.dropout": rng.choice([0.0, 0.05, 0.1]),
            "optimizer.name": rng.choice(["adamw", "sgd", "lion"]),
            "method.roles": rng.choice(all_masks()),
        }
        for seed in range(SEEDS):
            settle(folder, trial, seed, point, rng)


def settle(folder: Path, trial: int, seed: int, point: Mapping[str, Any], rng: random.Random) -> None:
    """The result and the curve of one run."""
    run, rank, roles = run_id(trial, seed), point["method.r"], point["method.roles"]
    loss = 2 - 0.05 * math.log2(rank) + 0.1 * (math.log10(point["optimizer.lr"]) + 3) ** 2
    loss += 0.1 * (point["optimizer.name"] == "sgd") - 0.03 * ("projection" in roles) + rng.gauss(0, 0.02)
    result = RunResult(
        run, trial, seed, f"{trial:x}-{seed}", Outcome.COMPLETED, pairs(point), eval_loss=loss, best_eval_loss=loss,
        base_eval_loss=3.0, train_loss=loss - 0.1, steps=STEPS, tokens=1000 * STEPS, seconds=10 + rank / 10,
        trainable_parameters=10_000 * rank * len(roles), lane_bytes=160_000 * rank, peak_bytes=10**9,
    )  # fmt: skip
    write_json(folder / "runs" / run / "result.json", result.to_tree(), durable=False)
    lines = [{"kind": "step", "step": i, "loss": loss + 1 - i / STEPS} for i in range(1, STEPS + 1)]
    every = STEPS // EVALUATIONS
    lines += [{"kind": "evaluation", "step": i, "loss": loss + 1 - i / STEPS} for i in range(every, STEPS + 1, every)]
    (folder / "runs" / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def seconds(folder: Path, *words: str) -> float:
    """How long one report takes."""
    command = [sys.executable, "-m", "lora_lab.cli.main", "report", str(folder), *words]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(runs: int, rounds: int) -> dict[str, Any]:
    """Median seconds of each kind of report over ``runs`` runs, and the page's megabytes."""
    with tempfile.TemporaryDirectory() as temp:
        folder, page = Path(temp) / "made_up", Path(temp) / "report.html"
        fill(folder, runs, random.Random(0))
        kinds = {"screen": (), "page": ("--html", str(page)), "csv": ("--csv",)}
        taken = {name: [seconds(folder, *words) for _ in range(rounds)] for name, words in kinds.items()}
        size = page.stat().st_size
    return {
        "runs": runs,
        "seconds": {name: round(statistics.median(times), 2) for name, times in taken.items()},
        "page_mb": round(size / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = [measure(runs, args.rounds) for runs in args.runs]
    found = {"rows": rows, "rounds": args.rounds, "load": round(os.getloadavg()[0], 1), "machine": facts()}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
