"""Tokens per second of a training step against the number of lanes, beside the machine's matrix-product peak.

One process, SmolLM2-135M in bfloat16, real built-in data; the numbers of lanes take turns round after round, so that
a noisy machine is noisy for all of them. A step is forward, backward, clipping and AdamW of every lane, ranks mixed.
What counts is the ratio to one lane and the share of the peak, both measured in this run.

    python benchmarks/packed_step.py [--lanes 1 3 9] [--rounds 3] [--roles query+value]

Results go to benchmarks/results/packed_step.json with the machine they ran on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import machine
import torch

from lora_lab import data, models
from lora_lab.config import compose_run
from lora_lab.engine.cost import Flops
from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import Pack
from lora_lab.spec import EvalMetrics, Order, RunResult, RunSpec, StepMetrics, Verdict

RANKS = (2, 8, 32)
SETTINGS = ("data.train_size=512", "data.eval_size=8", "budget.batch_size=8")


class Clock:
    """A recorder that hears when each step was done, and a controller that ends a pack after so many of them."""

    def __init__(self, steps: int) -> None:
        self.steps, self.times, self.tokens = steps, [time.perf_counter()], [0]

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None: ...

    def step(self, run: str, metrics: StepMetrics) -> None:
        if metrics.step == len(self.times):
            self.times.append(time.perf_counter())
            self.tokens.append(0)
        self.tokens[-1] += metrics.tokens

    def evaluation(self, run: str, metrics: EvalMetrics) -> None: ...

    def ended(self, result: RunResult) -> None: ...

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        return Verdict.STOP

    def orders(self) -> dict[str, Order]:
        return {}

    def saved(self, run: str, step: int) -> None: ...

    def pause_requested(self) -> bool:
        return len(self.times) > self.steps

    def rates(self) -> list[float]:
        """Tokens per second of every step but the first, which also builds the lanes."""
        seconds = [b - a for a, b in zip(self.times[1:-1], self.times[2:], strict=True)]
        return [n / s for n, s in zip(self.tokens[2:], seconds, strict=True)]


def measure(base: models.BaseModel, lanes: int, roles: str, steps: int) -> tuple[list[float], float]:
    """Tokens per second of ``steps - 1`` steps of a pack, and model FLOPs per token."""
    tokens = None
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for i in range(lanes):
            words = (*SETTINGS, f"budget.steps={steps + 1}", f"method.r={RANKS[i % 3]}", f"method.roles={roles}")
            spec = compose_run([*words, f"seed={i}"])
            tokens = tokens or data.load(spec.data, base.tokenizer)
            jobs.append(LaneJob(f"lane{i}", spec, tokens, Path(folder) / str(i)))
        pack = Pack(base, clock, clock, lanes)
        for ends in pack.train(lambda: jobs.pop(0) if jobs else None):
            one = ends[0].lane
        pack.close()
    assert tokens is not None and one is not None
    sample = [tokens.train.tokens(i) for i in range(64)]
    return clock.rates(), Flops(base).training(sample, one.attachment) / sum(len(ids) for ids, _ in sample)


def main() -> None:
    """Measure, print a table, keep the result."""
    parser = argparse.ArgumentParser(description="training throughput against lanes in a pack")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 3, 9])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps a round; the first is not counted")
    parser.add_argument("--roles", default="query+value")
    args = parser.parse_args()
    roles = "[" + args.roles.replace("+", ",") + "]"

    base = models.load(compose_run(list(SETTINGS)).model)
    shapes = machine.linear_shapes(base.model)
    rates: dict[int, list[float]] = {lanes: [] for lanes in args.lanes}
    shares: dict[int, list[float]] = {lanes: [] for lanes in args.lanes}
    for turn in range(args.rounds):
        order = args.lanes if turn % 2 == 0 else args.lanes[::-1]
        for lanes in order:
            peak = machine.gemm_peak(shapes, torch.bfloat16)
            found, flops = measure(base, lanes, roles, args.steps)
            rates[lanes] += found
            shares[lanes] += [rate * flops / peak for rate in found]

    first = statistics.median(rates[args.lanes[0]])
    rows = []
    print(f"{'lanes':>5}  {'tokens/s (median, min-max)':>28}  {'ratio':>6}  {'of peak':>8}")
    for lanes in args.lanes:
        low, middle, high = min(rates[lanes]), statistics.median(rates[lanes]), max(rates[lanes])
        share = statistics.median(shares[lanes])
        print(
            f"{lanes:>5}  {middle:>12.0f} ({low:.0f}-{high:.0f})".ljust(37) + f"{middle / first:>6.2f}  {share:>8.0%}"
        )
        rows.append({"lanes": lanes, "tokens_per_second": [low, middle, high], "ratio": middle / first, "peak": share})
    kept = Path(__file__).parent / "results" / "packed_step.json"
    kept.parent.mkdir(exist_ok=True)
    about = {"machine": machine.facts() | {"threads": torch.get_num_threads()}, "roles": args.roles}
    kept.write_text(json.dumps(about | {"rounds": args.rounds, "rows": rows}, indent=1) + "\n")
    print(f"kept in {kept}")


if __name__ == "__main__":
    main()
