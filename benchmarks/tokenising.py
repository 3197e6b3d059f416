"""Seconds to tokenise 50,000 Alpaca-size examples once, and to open them again from the cache.

The examples are those of $LORA_LAB_DATA/alpaca_5k.json, repeated with a number so that no two are equal. Each figure
is taken in a fresh process: ``tokenise`` with an empty cache, ``wait`` by a second process that starts with it and is
given the first one's tokens, ``open`` afterwards, ``open_1000`` at another size and split. The time to import packages
and to load the tokenizer is not in it. ``processor_seconds`` are those of all threads, whatever else the machine did.

    python benchmarks/tokenising.py [--rows 50000] [--rounds 3]

Results go to benchmarks/results/tokenising.json with the machine they ran on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from machine import facts

CHILD = """
import json, resource, sys, time
from lora_lab import data, models
from lora_lab.config import compose_run
from pathlib import Path
spec = compose_run(["model=smollm2_135m", "data=alpaca", *sys.argv[2:]])
tokenizer = models.load_tokenizer(spec.model)
tokenizer("warm")
started, used = time.perf_counter(), time.process_time()
found = data.load(spec.data, tokenizer, Path(sys.argv[1]))
batch = [found.train.tokens(i) for i in range(8)]
seconds, used = time.perf_counter() - started, time.process_time() - used
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([seconds, used, len(found.train), int(found.train.lengths.sum()), peak]))
"""


def started(cache: Path, *overrides: str) -> subprocess.Popen[str]:
    """A process that loads the data."""
    return subprocess.Popen([sys.executable, "-c", CHILD, str(cache), *overrides], stdout=subprocess.PIPE, text=True)


@dataclass(frozen=True)
class Answer:
    """What a process measured; ``processor`` are the seconds of all its threads, whatever else ran meanwhile."""

    seconds: float
    processor: float
    examples: int
    tokens: int
    peak_mib: float


def answer(process: subprocess.Popen[str]) -> Answer:
    """Wait for a process and read its measurements."""
    out, _ = process.communicate()
    return Answer(*json.loads(out.splitlines()[-1]))


def figures(values: list[float]) -> dict[str, float]:
    """The median and the best of several rounds."""
    return {"median": round(statistics.median(values), 3), "best": round(min(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tokenising.json")
    args = parser.parse_args()
    records = json.loads((Path(os.environ["LORA_LAB_DATA"]) / "alpaca_5k.json").read_text())
    times: dict[str, list[Answer]] = {name: [] for name in ("tokenise", "wait", "open", "open_1000")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "alpaca.json"
        rows = [
            records[i % len(records)] | {"instruction": f"{records[i % len(records)]['instruction']} ({i})"}
            for i in range(args.rows)
        ]
        file.write_text(json.dumps(rows))
        said = f"data.path={file}"
        for turn in range(args.rounds):
            cache = Path(folder) / f"cache{turn}"
            both = [started(cache, said), started(cache, said)]
            first, second = sorted((answer(process) for process in both), key=lambda a: a.processor, reverse=True)
            times["tokenise"].append(first)
            times["wait"].append(second)
            times["open"].append(answer(started(cache, said)))
            times["open_1000"].append(answer(started(cache, said, "data.train_size=1000", "data.seed=1")))
        size = file.stat().st_size
        kept = sum(f.stat().st_size for f in (Path(folder) / "cache0").rglob("*.safetensors"))
    result = {
        "rows": args.rows,
        "file_mb": round(size / 1e6, 1),
        "train_examples": first.examples,
        "train_tokens": first.tokens,
        "cache_mb": round(kept / 1e6, 1),
        "peak_mib": round(first.peak_mib),
        "seconds": {name: figures([t.seconds for t in taken]) for name, taken in times.items()},
        "processor_seconds": {name: figures([t.processor for t in taken]) for name, taken in times.items()},
        "load": round(os.getloadavg()[0], 1),
        "machine": facts(),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
