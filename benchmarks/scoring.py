"""Seconds to score K adapters on the article's six tasks: one pack, and lm-eval one adapter after another.

The peer is lm-eval's own Hugging Face model over stock PEFT: the base and all adapters are loaded once, ``set_adapter``
changes between them, and its batch size is the fastest of those tried first. The pack tunes nothing. Both build their
requests and count their answers by the same lm-eval code, which is in the time. Loading models and data is not. The two
take turns, task by task, in one process; what counts is the ratio. ``processor_seconds`` are those of all threads,
whatever else the machine did.

    LORA_LAB_DATA=… python benchmarks/scoring.py [--adapters 8] [--rounds 1] [--dtype bfloat16] [--scale 1.0]

Results go to benchmarks/results/scoring.json with the machine they ran on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import facts

from lora_lab import models
from lora_lab.bench import finding
from lora_lab.bench.harness import quietly
from lora_lab.bench.local import ARTICLE
from lora_lab.bench.scores import BOOTSTRAP, benchmark, flat
from lora_lab.config import compose_run
from lora_lab.methods import Attachment, attach
from lora_lab.packing.paths import Mount
from lora_lab.spec import EvaluationSpec, MethodSpec

LIMITS = {
    "arithmetic_2ds": 100,
    "arithmetic_4ds": 100,
    "blimp_causative": 100,
    "mmlu_global_facts": 40,
    "truthfulqa_mc1": 3,
    "truthfulqa_mc2": 3,
}
"""Documents of each task; lm-eval takes hours for eight adapters on all of TruthfulQA."""
BATCHES = (2, 8, 32)
"""What the peer's batch size is chosen from, task by task: the fastest with one adapter."""


def adapters(base: models.BaseModel, count: int) -> list[Attachment]:
    """LoRA of rank 8 on query and value, random on both sides so that each answers differently."""
    found = []
    for seed in range(count):
        lane = attach(base, MethodSpec(r=8, roles=("query", "value")), seed)
        for factor in lane.factors.values():
            torch.nn.init.normal_(factor.B, std=0.02, generator=torch.Generator().manual_seed(seed))
        found.append(lane)
    return found


Scores = list[dict[str, float]]
Taken = tuple[float, float]
"""Seconds of wall time and of the processor."""


class Clock:
    """Both kinds of seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def taken(self) -> Taken:
        return time.perf_counter() - self.wall, time.process_time() - self.processor


def packed(mount: Mount, lanes: list[Attachment], spec: EvaluationSpec) -> tuple[Taken, Scores]:
    """The time, and each adapter's scores."""
    clock = Clock()
    scores = benchmark(mount, lanes, spec)
    return clock.taken(), [flat(one) for one in scores]


def sequential(model: Any, tokenizer: Any, names: list[str], spec: EvaluationSpec, batch: int) -> tuple[Taken, Scores]:
    """The same by lm-eval, one adapter after another."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    tasks, scores = finding.find(spec), []
    clock = Clock()
    with quietly():
        for name in names:
            model.set_adapter(name)
            harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
            found = evaluate(harness, tasks, limit=spec.limit, bootstrap_iters=BOOTSTRAP, log_samples=False)
            scores.append(
                {
                    f"{task}.{key.partition(',')[0]}": value
                    for task, metrics in found["results"].items()
                    for key, value in metrics.items()
                    if key.endswith(",none") and isinstance(value, float)
                }
            )
    return clock.taken(), scores


def medians(taken: list[Taken]) -> list[float]:
    """Of wall time and of the processor's."""
    return [round(statistics.median(column), 2) for column in zip(*taken, strict=True)]


def stock(base: models.BaseModel, lanes: list[Attachment], folder: Path) -> tuple[Any, list[str]]:
    """The model as transformers loads it, with the adapters as PEFT loads them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base.model.save_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=base.model.dtype)
    names = [f"adapter{i}" for i in range(len(lanes))]
    for name, lane in zip(names, lanes, strict=True):
        lane.save(folder / name, base_name=base.spec.name)
    wrapped = PeftModel.from_pretrained(model, folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        wrapped.load_adapter(folder / name, adapter_name=name)
    return wrapped, names


def main() -> None:
    """Measure, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of documents")
    parser.add_argument("--tasks", nargs="+", default=list(ARTICLE))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scoring.json")
    args = parser.parse_args()
    data = os.environ["LORA_LAB_DATA"]
    specs = {
        name: EvaluationSpec(tasks=(name,), limit=max(2, round(LIMITS[name] * args.scale)), task_data=data)
        for name in args.tasks
    }
    base = models.load(compose_run([f"model.dtype={args.dtype}"]).model)
    lanes = adapters(base, args.adapters)
    mount = Mount(base)
    for lane in lanes:
        mount.mount(lane)
    with tempfile.TemporaryDirectory() as folder:
        model, names = stock(base, lanes, Path(folder))
    rows = []
    for name, spec in specs.items():
        packed(mount, lanes[:1], spec)  # data, kernels and caches are warm for both
        tried = {batch: sequential(model, base.tokenizer, names[:1], spec, batch)[0][1] for batch in BATCHES}
        batch = min(tried, key=lambda b: tried[b])
        ours, theirs = [], []
        for turn in range(args.rounds):
            for who in ("ours", "theirs") if (turn + len(rows)) % 2 == 0 else ("theirs", "ours"):
                if who == "ours":
                    seconds, mine = packed(mount, lanes, spec)
                    ours.append(seconds)
                else:
                    seconds, other = sequential(model, base.tokenizer, names, spec, batch)
                    theirs.append(seconds)
        apart = max(abs(mine[i][key] - value) for i, one in enumerate(other) for key, value in one.items())
        ties = sum(one[f"{name}.ties"] for one in mine)
        (wall, processor), (their_wall, their_processor) = medians(ours), medians(theirs)
        rows.append(
            {
                "task": name,
                "documents": spec.limit,
                "packed_seconds": wall,
                "lm_eval_seconds": their_wall,
                "packed_processor_seconds": processor,
                "lm_eval_processor_seconds": their_processor,
                "ratio": round(their_wall / wall, 2),
                "processor_ratio": round(their_processor / processor, 2),
                "lm_eval_batch_size": batch,
                "largest_difference": apart,
                "ties": ties,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    columns = [name for name in rows[0] if name.endswith("_seconds")]
    total = {name: round(sum(row[name] for row in rows), 1) for name in columns}
    total["ratio"] = round(total["lm_eval_seconds"] / total["packed_seconds"], 2)
    total["processor_ratio"] = round(total["lm_eval_processor_seconds"] / total["packed_processor_seconds"], 2)
    result = {
        "adapters": args.adapters,
        "model": base.spec.name,
        "dtype": args.dtype,
        "rounds": args.rounds,
        "rows": rows,
        "total": total,
        "load": round(os.getloadavg()[0], 1),
        "machine": facts() | {"threads": torch.get_num_threads()},
    }
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.write_text(json.dumps(kept | {args.dtype: result}, indent=1) + "\n")
    print(json.dumps(result["total"]))


if __name__ == "__main__":
    main()
