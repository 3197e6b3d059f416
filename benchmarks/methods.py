"""All methods in one table: parameters, memory, time of a step, loss, exact match and latency, on one model.

Trains the shipped sweep `methods` (or goes on with it), takes each method at its best learning rate, measures a step of
it alone in a fresh process, and times prefill and decoding with its adapter beside the resident base.

    python benchmarks/methods.py                                                # SmolLM2-135M
    python benchmarks/methods.py model=tiny budget.steps=4 --rounds 3           # overrides of the sweep

Results are added to benchmarks/results/methods.json with the machine they were made on.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import pandas as pd

from lora_lab.analysis.frame import load_results
from lora_lab.bench import latency
from lora_lab.config import compose_sweep
from lora_lab.errors import LoraLabError
from lora_lab.methods import attach
from lora_lab.models import load
from lora_lab.spec import RunSpec, show_size
from lora_lab.worker.bases import device_name
from lora_lab.worker.measuring import measure

RESULTS = Path(__file__).parent / "results" / "methods.json"
HEAD = (
    "method",
    "learning rate",
    "trainable",
    "loss",
    "exact match",
    "peak, predicted",
    "peak, measured",
    "ms a step",
    "prefill",
    "decode",
)


def best_runs(frame: pd.DataFrame, base: RunSpec) -> dict[str, tuple[RunSpec, pd.Series[Any]]]:
    """Of each method its run of lowest loss, and that run's spec."""
    found = {}
    for name, runs in frame[frame["outcome"] == "COMPLETED"].groupby("method.name", sort=False):
        row = runs.loc[runs["best_eval_loss"].idxmin()]
        point = {path: row[path] for path in frame.attrs["sweep"]["space"]}
        found[str(name)] = base.at(point), row
    return found


def latencies(runs: dict[str, RunSpec], device: str, prompt: int, new: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of prefill and decoding, one sequence, by method; and of the base by its name."""
    base = load(next(iter(runs.values())).model, device_name(device))
    variants = [latency.Variant(latency.BASE)]
    variants += [latency.Variant(name, attach(base, spec.method, 0)) for name, spec in runs.items()]
    frame = latency.measure(base, variants, batches=(1,), prompt=prompt, new=new, rounds=rounds)
    found: dict[str, dict[str, float]] = {}
    for row in latency.summary(frame).to_dict("records"):
        found.setdefault(row["variant"], {})[row["phase"]] = 1e3 * row["median"]
    return found


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table as text; what a method does not have is empty."""

    def number(key: str, form: str) -> str:
        value = row.get(key)
        return "" if value is None or math.isnan(value) else format(value, form)

    return [
        row["method"],
        number("lr", "g"),
        number("trainable_parameters", ",.0f"),
        number("loss", ".3f"),
        number("exact_match", ".0%"),
        show_size(row["predicted_bytes"]) if "predicted_bytes" in row else "",
        show_size(row["peak_bytes"]) if "peak_bytes" in row else "",
        number("ms_per_step", ".0f"),
        number("prefill_ms", ".0f"),
        number("decode_ms", ".0f"),
    ]


def main() -> None:
    """Train, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the sweep")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of prefill (default: 64)")
    parser.add_argument("--new", type=int, default=16, help="tokens decoded (default: 16)")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each (default: 7)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()

    command = [sys.executable, "-m", "lora_lab.cli.main", "sweep", "methods", *args.overrides]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        print("some runs of the sweep have no result; their methods are left out", file=sys.stderr)
    composed = compose_sweep("methods", args.overrides)
    runs = best_runs(load_results(composed.execution.folder), composed.sweep.base)

    rows: list[dict[str, Any]] = []
    for name, (spec, run) in runs.items():
        row: dict[str, Any] = {"method": name, "lr": float(spec.optimizer.lr)}
        row |= {"trainable_parameters": int(run["trainable_parameters"]), "loss": float(run["best_eval_loss"])}
        row["exact_match"] = float(run["exact_match"])
        try:
            found = measure(spec, device=args.device)
        except LoraLabError as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
        else:
            row["predicted_bytes"] = found.plan.peak_bytes
            row["peak_bytes"] = found.allocated_bytes or found.live_bytes
            row["ms_per_step"] = 1e3 * found.seconds_per_step
        print(" | ".join(cells(row)), file=sys.stderr)
        rows.append(row)
    specs = {name: spec for name, (spec, _) in runs.items()}
    times = latencies(specs, args.device, args.prompt, args.new, args.rounds)
    for row in [base := {"method": latency.BASE}, *rows]:
        row |= {f"{phase}_ms": found for phase, found in times[row["method"]].items()}
    rows.insert(0, base)

    print(f"| {' | '.join(HEAD)} |\n|---|{'---:|' * (len(HEAD) - 1)}")
    for row in rows:
        print(f"| {' | '.join(cells(row))} |")
    about = {"machine": machine.facts("cpu"), "overrides": args.overrides, "rows": rows}
    about |= {"prompt": args.prompt, "new": args.new, "rounds": args.rounds}
    machine.keep(args.results, [about])
    print(f"\nkept in {args.results}")


if __name__ == "__main__":
    main()
