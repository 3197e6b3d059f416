"""The same sweep by the ways people do it and by this project's engine: speed, share of the peak, memory, losses.

    trainer    Optuna + HF Trainer + PEFT, one run after another in one process; the model stays loaded
    trainers   the same in concurrent processes that share the cores, as Ray Tune or joblib would do it
    loop       a plain torch loop with stock PEFT
    pack       this project's engine, with each number of --lanes
    packs      the same lanes in concurrent packs that share the cores, as with launcher.workers

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

    python benchmarks/sweep_throughput.py [--shapes 1x64 2x96 4x128 alpaca] [--rounds 3] [--steps 2] [--quick]

Results are added to benchmarks/results/sweep_throughput.json with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
from throughput import whole as sweeps
from throughput.child import Job
from throughput.comparison import PEERS, Comparison, spread
from throughput.workload import SWEEP, Shape, alpaca_file, points

from lora_lab.config import compose_sweep
from lora_lab.spec import to_tree

RESULTS = Path(__file__).parent / "results" / "sweep_throughput.json"
METHODS = (*PEERS, "loop", "pack", "packs")
SHAPES = ("1x64", "2x96", "4x128", "alpaca")


def whole(args: argparse.Namespace, job: Job, words: list[str]) -> dict[str, Any]:
    """The sweep from command to table, by the peers and by ``lora-lab sweep``, in one process and in several."""
    peers = [m for m in PEERS if m in args.methods]
    ours = [sweeps.OURS, *([f"{sweeps.OURS} launcher.workers={args.processes}"] if "packs" in args.methods else [])]
    methods = [*peers, *ours]
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    losses: dict[str, dict[str, float]] = {}
    for turn in range(args.whole_rounds):
        for method in methods if turn % 2 == 0 else methods[::-1]:
            took, losses[method] = sweeps.measure(method, job, words, len(job.specs), args.processes)
            seconds[method].append(took)
    best = [min(taken) for taken in zip(*(seconds[m] for m in peers), strict=True)]
    ratios = {m: [peer / took for peer, took in zip(best, seconds[m], strict=True)] for m in ours} if peers else {}
    return {
        "table": "whole sweep",
        "machine": machine.facts(args.device) | {"threads": args.threads},
        "overrides": [word.replace(f"{file}", file.name) for word in words] if (file := alpaca_file()) else words,
        "runs": len(job.specs),
        "peer": {"attention": job.attention, "every_logit": job.every_logit},
        "rounds": args.whole_rounds,
        "seconds": {method: spread(taken) for method, taken in seconds.items()},
        "ratio_to_peer": {method: spread(found) for method, found in ratios.items()},
        "mean_eval_loss": {method: statistics.fmean(found.values()) for method, found in losses.items()},
    }


def show_whole(entry: dict[str, Any]) -> None:
    """Print the table of whole sweeps."""
    print(f"\nthe sweep of {entry['runs']} runs from command to table ({' '.join(entry['overrides'])})")
    for method, taken in entry["seconds"].items():
        loss = entry["mean_eval_loss"][method]
        print(f"{method:<35} {taken['median']:>7.1f} s ({taken['min']:.1f}-{taken['max']:.1f})  eval loss {loss:.4f}")
    for method, ratio in entry["ratio_to_peer"].items():
        print(f"{method} to the better peer: {ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})")


def show(entry: dict[str, Any]) -> None:
    """Print a shape's table."""
    peak = entry["peak_flops_per_second"]["median"]
    peer = entry["peer"]
    print(f"\n{entry['shape']}: {entry['model']}, peak {peak / 1e9:.0f} GFLOP/s, {entry['rounds']} rounds")
    logits = "of all positions" if peer["every_logit"] else "where a label is"
    print(f"peer: {peer['attention']} attention, logits {logits}")
    print(
        f"{'method':<10} {'runs':>4} {'GFLOP/s':>8} {'of peak':>8} {'to the peer (min-max)':>24} "
        f"{'to trainer':>10} {'memory':>9}"
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
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each run")
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
