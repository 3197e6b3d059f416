"""One shape's comparison: the jobs of each method, round after round, and what they found."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine

from lora_lab.spec import RunSpec, to_tree
from throughput import processes
from throughput.child import Job, Outcome
from throughput.workload import Shape, even_sample

PEERS = ("trainer", "trainers")
TOLERANCE, WITH_DROPOUT = 0.02, 0.08
"""Largest relative difference of a run's mean training loss between methods: bfloat16, and other dropout masks."""


class Comparison:
    """One shape: the jobs of each method, and what they found."""

    def __init__(self, shape: Shape, specs: list[RunSpec], args: argparse.Namespace) -> None:
        self.shape, self.args = shape, args
        self.specs = {f"run{i:02d}": spec for i, spec in enumerate(specs)}
        self.solo = [list(self.specs)[i] for i in even_sample(specs, args.solo_runs)]
        self.attention, self.every_logit = "eager", False
        self.tried: list[dict[str, Any]] = []
        self.rounds: dict[str, list[dict[str, float]]] = {}
        self.losses: dict[str, dict[str, float]] = {}

    def methods(self) -> list[str]:
        """Names of the methods, the packs' with their lanes."""
        alone = [method for method in self.args.methods if method not in ("pack", "packs")]
        one = [f"pack {lanes}" for lanes in self.args.lanes if "pack" in self.args.methods]
        several = [f"packs {lanes}" for lanes in self.args.lanes if "packs" in self.args.methods and lanes > 1]
        return alone + one + several

    def job(self, method: str, runs: list[str], **fields: Any) -> Job:
        """A job for one process."""
        return Job(
            method=method,
            shape=self.shape.name,
            specs={run: to_tree(self.specs[run]) for run in runs},
            first=self.args.warmup,
            device=self.args.device,
            threads=self.args.threads,
            attention=self.attention,
            every_logit=self.every_logit,
            **fields,
        )

    def jobs(self, method: str) -> list[Job]:
        """The processes of a method."""
        if method.startswith("packs"):
            runs = list(self.specs)[: int(method.split()[1])]
            return self._together("pack", runs, lanes=-(-len(runs) // self.args.processes))
        if method.startswith("pack"):
            lanes = int(method.split()[1])
            runs = self.solo if lanes == 1 else list(self.specs)[:lanes]
            return [self.job("pack", runs, lanes=lanes)]
        if method == "trainers":
            return self._together("trainer", self.solo)
        return [self.job(method, self.solo)]

    def _together(self, method: str, runs: list[str], **fields: Any) -> list[Job]:
        """Concurrent processes that share the runs and the cores."""
        count = min(self.args.processes, len(runs))
        threads = max(1, self.args.threads // count)
        return [replace(self.job(method, runs[i::count], **fields), threads=threads) for i in range(count)]

    def tune(self) -> None:
        """Try the peer's options on one run of middle size, and keep the fastest."""
        run = self.solo[len(self.solo) // 2]
        for attention in ("eager", "sdpa"):
            self._try(run, attention, False)
        best = max(self.tried, key=lambda tried: tried["flops_per_second"])
        self._try(run, best["attention"], True)
        best = max(self.tried, key=lambda tried: tried["flops_per_second"])
        self.attention, self.every_logit = best["attention"], best["every_logit"]

    def _try(self, run: str, attention: str, every_logit: bool) -> None:
        job = replace(self.job("trainer", [run]), attention=attention, every_logit=every_logit)
        (found,) = self.do([job])
        rate = found.flops / found.seconds
        self.tried.append({"attention": attention, "every_logit": every_logit, "flops_per_second": rate})

    def do(self, jobs: list[Job]) -> list[Outcome]:
        """Run jobs concurrently, in a folder of their own."""
        with tempfile.TemporaryDirectory() as folder:
            return processes.run(jobs, Path(folder))

    def round(self, turn: int) -> None:
        """Every method once, in an order that turns round."""
        methods = self.methods()
        outcomes = {m: self.do(self.jobs(m)) for m in (methods if turn % 2 == 0 else methods[::-1])}
        all_threads = [found for m, founds in outcomes.items() if len(founds) == 1 for found in founds]
        peak = max((found.peak for found in all_threads), default=sum(f.peak for f in next(iter(outcomes.values()))))
        for method, founds in outcomes.items():
            rate = sum(found.flops / found.seconds for found in founds)
            memory = sum(found.peak_bytes for found in founds)
            row = {"flops_per_second": rate, "share_of_peak": rate / peak, "peak": peak, "peak_bytes": memory}
            self.rounds.setdefault(method, []).append(row)
            self.losses.setdefault(method, {}).update({k: v for found in founds for k, v in found.losses.items()})

    def peer(self, turn: int) -> float | None:
        """The rate of the better peer in a round."""
        rates = [self.rounds[m][turn]["flops_per_second"] for m in PEERS if m in self.rounds]
        return max(rates, default=None)

    def disagreement(self) -> dict[str, float]:
        """The largest relative difference of a run's loss from the first method's, without and with dropout."""
        worst = {"without_dropout": 0.0, "with_dropout": 0.0}
        methods = list(self.losses)
        for method in methods[1:]:
            for run, loss in self.losses[method].items():
                if run in self.losses[methods[0]]:
                    kind = "with_dropout" if self.specs[run].method.dropout else "without_dropout"
                    reference = self.losses[methods[0]][run]
                    worst[kind] = max(worst[kind], abs(loss - reference) / abs(reference))
        return worst

    def entry(self) -> dict[str, Any]:
        """All of it as a JSON tree."""
        rows = []
        for method, rounds in self.rounds.items():
            rates = [row["flops_per_second"] for row in rounds]
            ratios = [rate / peer for turn, rate in enumerate(rates) if (peer := self.peer(turn))]
            alone = [row["flops_per_second"] for row in self.rounds.get("trainer", [])]
            solo = [rate / one for rate, one in zip(rates, alone, strict=False)]
            rows.append(
                {
                    "method": method,
                    "flops_per_second": spread(rates),
                    "share_of_peak": spread([row["share_of_peak"] for row in rounds]),
                    "ratio_to_peer": spread(ratios) if ratios else None,
                    "ratio_to_trainer": spread(solo) if solo else None,
                    "peak_bytes": max(row["peak_bytes"] for row in rounds),
                    "runs": len(self.losses[method]),
                    "losses": self.losses[method],
                }
            )
        worst = self.disagreement()
        return {
            "table": "training steps",
            "shape": self.shape.name,
            "model": next(iter(self.specs.values())).model.name,
            "machine": machine.facts(self.args.device) | {"threads": self.args.threads},
            "peak_flops_per_second": spread([row["peak"] for row in next(iter(self.rounds.values()))]),
            "rounds": self.args.rounds,
            "steps": self.args.steps,
            "warmup": self.args.warmup,
            "processes": self.args.processes,
            "peer": {"attention": self.attention, "every_logit": self.every_logit, "tried": self.tried},
            "loss_difference": worst | {"tolerance": TOLERANCE, "tolerance_with_dropout": WITH_DROPOUT},
            "losses_agree": worst["without_dropout"] <= TOLERANCE and worst["with_dropout"] <= WITH_DROPOUT,
            "points": {
                run: {
                    "r": spec.method.r,
                    "alpha": spec.method.effective_alpha,
                    "roles": list(spec.method.mask),
                    "dropout": spec.method.dropout,
                    "lr": spec.optimizer.lr,
                    "weight_decay": spec.optimizer.weight_decay,
                }
                for run, spec in self.specs.items()
            },
            "rows": rows,
        }


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
