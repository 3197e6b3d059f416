"""Every memory figure of the article, predicted: the planner's parts beside what one A100 showed in 2023.

Nothing is fitted. Llama-2-7B, bf16 throughout (adapters and optimizer states too, as Lit-GPT's ``bf16-true`` has them),
micro-batches of one sequence, the longest of Alpaca (1,304 tokens) or of LIMA (2,048). The article's figures are
``torch.cuda.max_memory_allocated`` of another program; what that program holds and this one does not is named beside
the residual, with its size where it can be computed. Where ``article_litgpt.py`` has traced that program, its peak is a
column of its own, and the residual is in two: what the programs differ in, and what neither explains.

    python benchmarks/article_memory.py [--article ../shared/reference/article.json] [--markdown]

Results are added to benchmarks/results/article_memory.json with the machine they were made on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import machine

from lora_lab.config import compose_run
from lora_lab.planner import Plan, plan
from lora_lab.spec import RunSpec

RESULTS = Path(__file__).parent / "results" / "article_memory.json"
TRACED = Path(__file__).parent / "results" / "article_litgpt.json"
ARTICLE = Path(__file__).parents[2] / "shared" / "reference" / "article.json"
MEMORY = 80 * 10**9
TOTAL = 6_738_415_616
BASE = (
    "model=llama2_7b",
    "data.max_length=1304",
    "data.mask_prompt=false",
    "budget.batch_size=128",
    "budget.micro_batch_size=1",
    "method.dtype=bfloat16",
    "method.dropout=0.05",
)
QV, ALL = "method.roles=[query,value]", "method.roles=all"
NF4, SGD = "model.quantization=nf4", ("optimizer=sgd", "optimizer.momentum=0.9")

COUNTS = {
    "query+value r=8": (QV, "method.r=8"),
    "all six roles r=8": (ALL, "method.r=8"),
    "all six roles r=16": (ALL, "method.r=16"),
    "all six roles r=256": (ALL, "method.r=256"),
}
ROWS: dict[str, tuple[str, ...]] = {
    "lora bf16, q+v r=8, AdamW": (QV,),
    "qlora nf4, q+v r=8, AdamW": (QV, NF4),
    "qlora fp4, q+v r=8, AdamW": (QV, "model.quantization=fp4"),
    "qlora nf4, q+v r=8, SGD": (QV, NF4, *SGD),
    "qlora nf4, all r=8, AdamW": (ALL, NF4),
    "qlora nf4, all r=16, AdamW": (ALL, NF4, "method.r=16"),
    "qlora nf4, all r=256, AdamW": (ALL, NF4, "method.r=256"),
    "qlora nf4, all r=256, SGD": (ALL, NF4, "method.r=256", *SGD),
    "qlora nf4, all r=256, AdamW, sequences up to 2048": (ALL, NF4, "method.r=256", "data.max_length=2048"),
    "full finetuning, per GPU, two GPUs": ("method=full", "method.dtype=auto"),
}
"""The article's names -> overrides."""
DIFFERENCES = {
    "AdamW - SGD, q+v r=8 (nf4)": ("qlora nf4, q+v r=8, AdamW", "qlora nf4, q+v r=8, SGD"),
    "AdamW - SGD, all r=256 (nf4)": ("qlora nf4, all r=256, AdamW", "qlora nf4, all r=256, SGD"),
    "all - q+v, r=8 (nf4)": ("qlora nf4, all r=8, AdamW", "qlora nf4, q+v r=8, AdamW"),
    "r=256 - r=8, all (nf4)": ("qlora nf4, all r=256, AdamW", "qlora nf4, all r=8, AdamW"),
    "bf16 - nf4, q+v r=8": ("lora bf16, q+v r=8, AdamW", "qlora nf4, q+v r=8, AdamW"),
    "2048 - 1304 tokens, all r=256 (nf4)": (
        "qlora nf4, all r=256, AdamW, sequences up to 2048",
        "qlora nf4, all r=256, AdamW",
    ),
    "full - LoRA bf16": ("full finetuning, per GPU, two GPUs", "lora bf16, q+v r=8, AdamW"),
}
"""The differences that the article concludes from: the first row less the second."""


@dataclass(frozen=True)
class Row:
    """A figure of the article beside its prediction; where ``gpus`` is 2, what is held all the time is halved."""

    name: str
    planned: Plan
    article: float
    gpus: int = 1
    traced: int | None = None
    """Bytes of the article's own program, by its trace."""

    @property
    def parts(self) -> dict[str, float]:
        """Predicted bytes by part on one GPU: sharded, what is held all the time is divided."""
        held = ("gradients", "optimizer", "adapters", "workspace")  # the last is the optimizer's, at this peak
        parts = {part: size / (self.gpus if part in held else 1) for part, size in self.planned.parts.items() if size}
        if self.gpus > 1:
            parts.pop("weights")  # the frozen base that this program keeps beside what trains
        return parts

    @property
    def predicted(self) -> float:
        """Predicted bytes on one GPU."""
        return sum(self.parts.values())

    @property
    def residual(self) -> float:
        """What the article has more, in bytes."""
        return self.article * 1e9 - self.predicted


def composed(*overrides: str) -> RunSpec:
    """The article's run with these changes."""
    return compose_run([*BASE, *overrides])


def logits_of_lit_gpt(spec: RunSpec) -> float:
    """Bytes of the logits that a program holds which computes them all: in bf16, in float32, and their gradient."""
    return spec.data.max_length * 32_000 * (2 + 4 + 4)


def dropped_inputs(spec: RunSpec) -> float:
    """Bytes of what ``nn.Dropout`` before every adapted module keeps: its mask, and the dropped input for A's gradient.

    This program draws the mask again in the backward and keeps neither.
    """
    inputs = {"query": 1, "key": 1, "value": 1, "projection": 1, "mlp": 2, "head": 1 / 32}
    wide = 11008 / 4096 if "mlp" in spec.method.mask else 0.0  # the down projection reads the wide side
    width = 4096 * (sum(inputs[role] for role in spec.method.mask) + wide)
    return 32 * spec.data.max_length * width * (2 + 1)


def kept_inputs(spec: RunSpec) -> float:
    """Bytes of the inputs that bitsandbytes 0.41 keeps of every 4-bit product, whose backward does not read them."""
    return 2.0 * 32 * spec.data.max_length * (3 * 4096 + 11008)


def causes(name: str, spec: RunSpec, planned: Plan) -> dict[str, float]:
    """What the article's program holds at its peak and this one does not, or the other way round (below 0), in bytes.

    Lit-GPT trains on the longest sequence first, so that its peak comes before gradients and states are there.
    """
    logits = logits_of_lit_gpt(spec)
    if "full" in name:
        gathered = 2 * 2 * (4 * 4096**2 + 3 * 4096 * 11008)
        return {"layers that FSDP gathers and prefetches": float(gathered), "all logits": logits}
    found = {"all logits": logits, "dropout": dropped_inputs(spec)}
    if spec.model.quantization != "none":
        found["inputs of 4-bit products"] = kept_inputs(spec)
    found["no gradients and states yet"] = -float(planned.parts["gradients"] + planned.parts["optimizer"])
    return found


def traced_peaks(results: Path) -> dict[str, int]:
    """Bytes of Lit-GPT's first micro-batch by configuration, as ``article_litgpt.py`` last traced them."""
    if not results.exists():
        return {}
    return {row["configuration"]: sum(row["first"].values()) for row in json.loads(results.read_text())[-1]["rows"]}


def text_of(size: float) -> str:
    """Gigabytes with two digits."""
    return f"{size / 1e9:.2f}"


def main() -> None:
    """Predict, print, check what must hold, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--article", type=Path, default=ARTICLE, help="the article's numbers as JSON")
    parser.add_argument("--traced", type=Path, default=TRACED, help="what article_litgpt.py has kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    article = json.loads(args.article.read_text())

    failures = []
    counts = {}
    print("| trainable parameters | article | here |\n|---|---:|---:|")
    for name, overrides in COUNTS.items():
        planned = plan(composed(*overrides), memory=MEMORY, device="cuda", remedies=False)
        counts[name] = planned.trainable_parameters
        wanted = article["trainable_parameters"][name]
        print(f"| {name} | {wanted:,} | {planned.trainable_parameters:,} |")
        if planned.trainable_parameters != wanted or planned.total_parameters != TOTAL:
            failures.append(f"{name}: {planned.trainable_parameters:,} of {planned.total_parameters:,} parameters")

    rows: dict[str, Row] = {}
    traced = traced_peaks(args.traced)
    head = ("configuration", "article, GB", "predicted, GB", "residual", "Lit-GPT traced, GB", "unexplained")
    print(f"\n| {' | '.join(head)} | made of (GB) | likely causes (GB) |")
    print("|---|---:|---:|---:|---:|---:|---|---|")
    for name, overrides in ROWS.items():
        spec = composed(*overrides)
        planned = plan(spec, memory=MEMORY, device="cuda", remedies=False)
        row = rows[name] = Row(
            name, planned, article["memory_gb"][name], 2 if "two GPUs" in name else 1, traced.get(name)
        )
        parts = ", ".join(f"{part.replace('_', ' ')} {text_of(size)}" for part, size in row.parts.items() if size > 5e6)
        known = ", ".join(f"{why} {text_of(size)}" for why, size in causes(name, spec, planned).items())
        beside = ("", "") if row.traced is None else (text_of(row.traced), text_of(row.article * 1e9 - row.traced))
        sizes = (f"{row.article:.2f}", text_of(row.predicted), text_of(row.residual), *beside)
        print(f"| {name} | {' | '.join(sizes)} | {parts} | {known} |")
    first = rows["lora bf16, q+v r=8, AdamW"]
    if abs(first.predicted / (first.article * 1e9) - 1) > 0.10:
        failures.append(f"{first.name}: {text_of(first.predicted)} GB, the article has {first.article}")

    differences = []
    print("\n| difference | article, GB | predicted, GB | Lit-GPT traced, GB |\n|---|---:|---:|---:|")
    for name, (more, less) in DIFFERENCES.items():
        there = rows[more].article - rows[less].article
        here = (rows[more].predicted - rows[less].predicted) / 1e9
        differences.append({"difference": name, "article_gb": round(there, 3), "predicted_gb": round(here, 3)})
        theirs = rows[more].traced, rows[less].traced
        by_trace = "" if theirs[0] is None or theirs[1] is None else f"{(theirs[0] - theirs[1]) / 1e9:+.2f}"
        print(f"| {name} | {there:+.2f} | {here:+.2f} | {by_trace} |")
        if there * here <= 0:
            failures.append(f"{name}: {here:+.2f} GB, the article has {there:+.2f}")

    kept = [
        {"configuration": row.name, "article_gb": row.article, "predicted_bytes": row.predicted, "parts": row.parts}
        | {"traced_bytes": row.traced}
        for row in rows.values()
    ]
    about = {"machine": machine.facts("cpu"), "parameters": counts, "rows": kept, "differences": differences}
    machine.keep(args.results, [about])
    print(f"\nkept in {args.results}")
    for failure in failures:
        print(f"not as it must be: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
