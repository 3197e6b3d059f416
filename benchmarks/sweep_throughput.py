"""The same sweep by the ways people do it and by this project's engine: speed, share of the peak, memory, losses.

    trainer    Optuna + HF Trainer + PEFT, one run after another in one process; the model stays loaded
    trainers   the same in concurrent processes that share the cores, as Ray Tune or joblib would do it
    loop       a plain torch loop with stock PEFT
    pack       this project's engine, with each number of --lanes

The better of ``trainer`` and ``trainers`` is the peer. Before the rounds it is tuned for the shape: eager and SDPA
attention, and logits of all positions or of supervised ones, are tried, and the fastest is taken.

Each method runs in a fresh process, in alternating order, round after round. What is timed are whole training steps
(forward, backward, clipping, optimizer, batches) after the first ``--warmup`` ones of each run; loading, building the
adapters, evaluation and saving are not. Rates are model FLOPs (engine/cost.py, alike for all) per second, so that
``--solo-runs`` may have the methods that train one run at a time do an even sample of the sweep. Concurrent processes
are given the sum of their rates, as if the work were perfectly divided. The peak is the best product of the model's own
shapes in its dtype, measured in the same round.

A second table is the sweep as a whole, from command to table: loading, tokenising, training, evaluation and saving, by
the peers' program and by ``lora-lab sweep``.

    python benchmarks/sweep_throughput.py [--shapes 1x64 2x96 4x128 alpaca] [--rounds 3] [--steps 3] [--quick]

Results are added to benchmarks/results/sweep_throughput.json with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
from throughput import processes
from throughput import whole as sweeps
from throughput.child import Job, Outcome
from throughput.workload import SWEEP, Shape, alpaca_file, even_sample, points

from lora_lab.config import compose_sweep
from lora_lab.spec import RunSpec, to_tree

RESULTS = Path(__file__).parent / "results" / "sweep_throughput.json"
PEERS = ("trainer", "trainers")
METHODS = (*PEERS, "loop", "pack")
SHAPES = ("1x64", "2x96", "4x128", "alpaca")
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
        """Names of the methods, the pack's with its lanes."""
        solo = [method for method in self.args.methods if method != "pack"]
        return solo + [f"pack {lanes}" for lanes in self.args.lanes if "pack" in self.args.methods]

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
        if method.startswith("pack"):
            lanes = int(method.split()[1])
            runs = self.solo if lanes == 1 else list(self.specs)[:lanes]
            return [self.job("pack", runs, lanes=lanes)]
        if method == "trainers":
            count = min(self.args.processes, len(self.solo))
            threads = max(1, self.args.threads // count)
            return [replace(self.job("trainer", self.solo[i::count]), threads=threads) for i in range(count)]
        return [self.job(method, self.solo)]

    def tune(self) -> None:
        """Try the peer's options on one run of middle size, and keep the fastest."""
        run = self.solo[len(self.solo) // 2]
        for attention in ("eager", "sdpa"):
            for every_logit in (False, True):
                job = replace(self.job("trainer", [run]), attention=attention, every_logit=every_logit)
                (found,) = self.do([job])
                rate = found.flops / found.seconds
                self.tried.append({"attention": attention, "every_logit": every_logit, "flops_per_second": rate})
        best = max(self.tried, key=lambda tried: tried["flops_per_second"])
        self.attention, self.every_logit = best["attention"], best["every_logit"]

    def do(self, jobs: list[Job]) -> list[Outcome]:
        """Run jobs concurrently, in a folder of their own."""
        with tempfile.TemporaryDirectory() as folder:
            return processes.run(jobs, Path(folder))

    def round(self, turn: int) -> None:
        """Every method once, in an order that turns round."""
        methods = self.methods()
        outcomes = {m: self.do(self.jobs(m)) for m in (methods if turn % 2 == 0 else methods[::-1])}
        all_threads = [found for m, founds in outcomes.items() if m != "trainers" for found in founds]
        peak = max((found.peak for found in all_threads), default=sum(f.peak for f in outcomes.get("trainers", [])))
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
                    "flops_per_second": _spread(rates),
                    "share_of_peak": _spread([row["share_of_peak"] for row in rounds]),
                    "ratio_to_peer": _spread(ratios) if ratios else None,
                    "ratio_to_trainer": _spread(solo) if solo else None,
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
            "peak_flops_per_second": _spread([row["peak"] for row in next(iter(self.rounds.values()))]),
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


def whole(args: argparse.Namespace, job: Job, words: list[str]) -> dict[str, Any]:
    """The sweep from command to table, by the peers and by ``lora-lab sweep``."""
    methods = [*(m for m in PEERS if m in args.methods), sweeps.OURS]
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    losses: dict[str, dict[str, float]] = {}
    for turn in range(args.whole_rounds):
        for method in methods if turn % 2 == 0 else methods[::-1]:
            took, losses[method] = sweeps.measure(method, job, words, len(job.specs), args.processes)
            seconds[method].append(took)
    peers = [min(taken) for taken in zip(*(seconds[m] for m in methods[:-1]), strict=True)]
    ratios = [peer / ours for peer, ours in zip(peers, seconds[sweeps.OURS], strict=True)]
    return {
        "table": "whole sweep",
        "machine": machine.facts(args.device) | {"threads": args.threads},
        "overrides": words,
        "runs": len(job.specs),
        "peer": {"attention": job.attention, "every_logit": job.every_logit},
        "rounds": args.whole_rounds,
        "seconds": {method: _spread(taken) for method, taken in seconds.items()},
        "ratio_to_peer": _spread(ratios) if ratios else None,
        "mean_eval_loss": {method: statistics.fmean(found.values()) for method, found in losses.items()},
    }


def show_whole(entry: dict[str, Any]) -> None:
    """Print the table of whole sweeps."""
    print(f"\nthe sweep of {entry['runs']} runs from command to table ({' '.join(entry['overrides'])})")
    for method, taken in entry["seconds"].items():
        loss = entry["mean_eval_loss"][method]
        print(f"{method:<15} {taken['median']:>7.1f} s ({taken['min']:.1f}-{taken['max']:.1f})  eval loss {loss:.4f}")
    if ratio := entry["ratio_to_peer"]:
        print(f"lora-lab sweep to the better peer: {ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})")


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(entry: dict[str, Any]) -> None:
    """Print a shape's table."""
    peak = entry["peak_flops_per_second"]["median"]
    peer = entry["peer"]
    print(f"\n{entry['shape']}: {entry['model']}, peak {peak / 1e9:.0f} GFLOP/s, {entry['rounds']} rounds")
    logits = "of all positions" if peer["every_logit"] else "where a label is"
    print(f"peer: {peer['attention']} attention, logits {logits}")
    print(
        f"{'method':<10} {'runs':>4} {'GFLOP/s':>8} {'of peak':>8} {'to the peer (min-max)':>24} {'to trainer':>10} {'memory':>9}"
    )
    for row in entry["rows"]:
        ratio = row["ratio_to_peer"]
        said = f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else "-"
        solo = f"{row['ratio_to_trainer']['median']:.2f}x" if row["ratio_to_trainer"] else "-"
        print(
            f"{row['method']:<10} {row['runs']:>4} {row['flops_per_second']['median'] / 1e9:>8.0f} "
            f"{row['share_of_peak']['median']:>8.0%} {said:>24} {solo:>10} {row['peak_bytes'] / 1e6:>6.0f} MB"
        )
    worst = entry["loss_difference"]
    print(
        f"losses {'agree' if entry['losses_agree'] else 'DISAGREE'}: they differ by {worst['without_dropout']:.2%} "
        f"at most, {worst['with_dropout']:.2%} with dropout"
    )


def main() -> None:
    """Measure every shape, print its table, keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="2x96, alpaca, nf4-1x64, …")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 16], help="of the pack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each run")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each run before them")
    parser.add_argument("--solo-runs", type=int, default=4, help="runs that methods of one run at a time train")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--processes", type=int, default=2, help="concurrent ones of `trainers`")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--model", nargs="+", default=[], metavar="key=value", help="overrides, e.g. model=tiny")
    parser.add_argument("--tables", nargs="+", default=["steps", "whole"], choices=["steps", "whole"])
    parser.add_argument("--whole-runs", type=int, default=16, help="runs of the sweep from command to table")
    parser.add_argument("--whole-steps", type=int, default=12, help="steps of each of them")
    parser.add_argument("--whole-rounds", type=int, default=1)
    parser.add_argument("--whole-attention", default="eager", choices=["eager", "sdpa"], help="the peer's")
    parser.add_argument("--quick", action="store_true", help="one round, one step, three runs, no tuning")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.steps, args.solo_runs, args.lanes = 1, 1, 3, [3]
        args.whole_runs, args.whole_steps = 3, 1

    for name in args.shapes if "steps" in args.tables else ():
        shape = Shape.read(name)
        if shape.length is None and alpaca_file() is None:
            print(f"\n{name}: left out, $LORA_LAB_DATA has no instructions")
            continue
        words = [*args.model, *shape.overrides, f"budget.steps={args.warmup + args.steps}"]
        comparison = Comparison(shape, points(words, max(args.lanes)), args)
        if not args.quick:
            comparison.tune()
        for turn in range(args.rounds):
            comparison.round(turn)
        entry = comparison.entry()
        show(entry)
        machine.keep(args.results, [entry])
    if "whole" in args.tables:
        size = compose_sweep(str(SWEEP), args.model).sweep.base.budget.batch_size
        words = [*args.model, *sweeps.overrides(args.whole_steps, args.whole_steps * size)]
        specs = {f"run{i:02d}": spec for i, spec in enumerate(points(words, args.whole_runs, own_seeds=False))}
        job = Job("trainer", "", {run: to_tree(spec) for run, spec in specs.items()}, 0, 1, args.threads, args.device)
        entry = whole(args, replace(job, attention=args.whole_attention), words)
        show_whole(entry)
        machine.keep(args.results, [entry])
    print(f"\nkept in {args.results}")


if __name__ == "__main__":
    main()
