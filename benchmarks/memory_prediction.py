"""Predicted against measured peak memory of random configurations on this machine, each alone in a fresh process.

Architectures, shapes, dtypes, quantisations, methods, optimizers, lengths, micro-batches and checkpointing are drawn at
random from a seed. Measured is the peak of live tensors over a step of the real training loop (on CUDA the allocator's
own ``max_memory_allocated``), the base model included.

    python benchmarks/memory_prediction.py [--count 24] [--seed 0] [--device cpu]

Results are added to benchmarks/results/memory_prediction.json with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path

import machine

from lora_lab.errors import LoraLabError
from lora_lab.spec import (
    ROLES,
    BudgetSpec,
    DataSpec,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    all_masks,
    pairs,
    show_size,
    to_tree,
)
from lora_lab.spec.method import METHODS
from lora_lab.spec.optimizer import OPTIMIZERS
from lora_lab.worker.measuring import measure

RESULTS = Path(__file__).parent / "results" / "memory_prediction.json"
MEDIAN, WORST = 0.05, 0.10
"""How far predictions may be off, as shares of what was measured."""


def drawn(dice: random.Random) -> RunSpec:
    """A random configuration that can be: others are drawn again."""
    while True:
        try:
            return _drawn(dice)
        except LoraLabError:
            continue


def _drawn(dice: random.Random) -> RunSpec:
    heads = dice.choice([4, 8])
    width = heads * dice.choice([16, 32, 64])
    kind = dice.choice(["llama", "qwen2", "mistral", "gpt2"])
    shape = (
        {"n_embd": width, "n_layer": dice.randint(2, 10), "n_head": heads, "n_positions": 1024}
        if kind == "gpt2"
        else {
            "hidden_size": width,
            "intermediate_size": width * dice.choice([2, 3]),
            "num_hidden_layers": dice.randint(2, 10),
            "num_attention_heads": heads,
            "num_key_value_heads": dice.choice([heads, heads // 2]),
            "max_position_embeddings": 1024,
            "tie_word_embeddings": dice.random() < 0.5,
        }
    )
    quantization = dice.choice(["none", "none", "nf4", "fp4"]) if kind != "gpt2" else "none"
    model = ModelSpec(
        kind,
        source="random",
        dtype=dice.choice(["bfloat16", "float32"]),
        quantization=quantization,
        config=pairs(shape | {"model_type": kind, "vocab_size": dice.choice([500, 2000, 8000])}),
    )
    name = dice.choice(["lora", "lora", "lora", *METHODS])
    # GPT-2's query, key and value are one matrix: they are adapted together or not at all.
    fused = [mask for mask in all_masks() if len({"query", "key", "value"} & set(mask)) in (0, 3)]
    roles = dice.choice([mask for mask in (fused if kind == "gpt2" else all_masks()) if mask] + [ROLES] * 8)
    method = MethodSpec(
        name,
        r=dice.choice([2, 8, 32, 128]),
        roles=roles,
        dropout=dice.choice([0.0, 0.1]),
        dora=name == "lora" and dice.random() < 0.2,
        add_biases=name == "bitfit",
    )
    micro = dice.choice([1, 2, 4])
    return RunSpec(
        model,
        data=DataSpec(max_length=dice.choice([32, 64, 128, 256, 512])),
        method=method,
        optimizer=OptimizerSpec(dice.choice([name for name in OPTIMIZERS if not name.startswith("paged")])),
        budget=BudgetSpec(
            batch_size=micro * dice.choice([1, 2]), micro_batch_size=micro, checkpointing=dice.random() < 0.25
        ),
    )


def name_of(spec: RunSpec) -> str:
    """A configuration in a line."""
    budget, model, method = spec.budget, spec.model, spec.method
    words = [model.name, model.dtype, *([model.quantization] if model.quantization != "none" else []), method.name]
    words += [f"r={method.r}"] if method.reads("r") else []
    words += ["dora"] if method.dora else []
    words += [spec.optimizer.name, f"{budget.micro}x{spec.data.max_length}"]
    return " ".join([*words, *(["checkpointing"] if budget.checkpointing else [])])


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()

    dice = random.Random(args.seed)
    rows = []
    print("| configuration | predicted | measured | off by |\n|---|---:|---:|---:|", flush=True)
    while len(rows) < args.count:
        spec = drawn(dice)
        try:
            found = measure(spec, device=args.device, steps=1)
        except LoraLabError as error:
            print(f"drawn again: {name_of(spec)}: {error}", file=sys.stderr, flush=True)
            continue
        rows.append({"configuration": name_of(spec), "spec": to_tree(spec)} | found.to_tree())
        there = found.allocated_bytes or found.live_bytes
        sizes = f"{show_size(found.plan.peak_bytes)} | {show_size(there)}"
        print(f"| {name_of(spec)} | {sizes} | {found.error:+.1%} |", flush=True)
    errors = sorted(abs(row["error"]) for row in rows)
    median, worst = statistics.median(errors), errors[-1]
    print(f"\n{len(rows)} configurations: median {median:.2%}, worst {worst:.2%}")
    about = {"seed": args.seed, "median": median, "worst": worst, "machine": machine.facts(args.device), "rows": rows}
    machine.keep(args.results, [about])
    print(f"kept in {args.results}")
    if median > MEDIAN or worst > WORST:
        sys.exit(f"more than {MEDIAN:.0%} in the median, or {WORST:.0%} at worst")


if __name__ == "__main__":
    main()
