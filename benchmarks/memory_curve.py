"""Memory and time of a training step against the lanes of a pack: K = 1, 2, 4, 8, 16, 32.

The runs are those of benchmarks/sweep_throughput.py. Each number of lanes gets a fresh process, so that its peak is its
own. K lanes cost the base once and their own parts K times; K separate processes would cost the base K times.

    python benchmarks/memory_curve.py [--lanes 1 2 4 8 16 32] [--shape 1x64] [--steps 3]

Results are added to benchmarks/results/memory_curve.json with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import machine
from throughput import processes
from throughput.child import Job
from throughput.workload import Shape, points

from lora_lab.spec import to_tree

RESULTS = Path(__file__).parent / "results" / "memory_curve.json"


def main() -> None:
    """Measure each number of lanes, print the curve, keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--shape", default="1x64", help="2x96, alpaca, nf4-1x64, …")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--model", nargs="+", default=[], metavar="key=value", help="overrides, e.g. model=tiny")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()

    shape = Shape.read(args.shape)
    words = [*args.model, *shape.overrides, f"budget.steps={args.warmup + args.steps}"]
    specs = points(words, max(args.lanes))
    rows = []
    print(f"{'lanes':>5} {'base':>9} {'peak':>9} {'a lane':>9} {'s a step':>9} {'s a lane':>9} {'of peak':>8}")
    for lanes in args.lanes:
        job = Job(
            method="pack",
            shape=shape.name,
            specs={f"run{i:02d}": to_tree(spec) for i, spec in enumerate(specs[:lanes])},
            first=args.warmup,
            lanes=lanes,
            threads=args.threads,
            device=args.device,
        )
        with tempfile.TemporaryDirectory() as folder:
            (found,) = processes.run([job], Path(folder))
        step = found.seconds / args.steps
        row = {
            "lanes": lanes,
            "loaded_bytes": found.loaded_bytes,
            "peak_bytes": found.peak_bytes,
            "bytes_per_lane": (found.peak_bytes - found.loaded_bytes) / lanes,
            "step_seconds": step,
            "share_of_peak": found.flops / found.seconds / found.peak,
        }
        rows.append(row)
        print(
            f"{lanes:>5} {row['loaded_bytes'] / 1e6:>6.0f} MB {row['peak_bytes'] / 1e6:>6.0f} MB "
            f"{row['bytes_per_lane'] / 1e6:>6.0f} MB {step:>9.3f} {step / lanes:>9.3f} {row['share_of_peak']:>8.0%}",
            flush=True,
        )
    about = {"shape": shape.name, "model": specs[0].model.name, "steps": args.steps, "warmup": args.warmup}
    facts = machine.facts(args.device) | {"threads": args.threads}
    machine.keep(args.results, [about | {"machine": facts, "rows": rows}])
    print(f"kept in {args.results}")


if __name__ == "__main__":
    main()
