"""Tiny models of several architectures, and a pack run from jobs to lane ends."""

from __future__ import annotations

from typing import Any

from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import LaneEnd, Pack
from lora_lab.models import BaseModel
from lora_lab.spec import (
    EvalMetrics,
    ModelSpec,
    Order,
    RunResult,
    RunSpec,
    StepMetrics,
    Verdict,
    pairs,
)

SHAPES: dict[str, dict[str, Any]] = {
    "llama-tied-gqa": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 320,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
    },
    "gpt2-fused": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 2,
        "vocab_size": 320,
        "n_positions": 256,
    },
    "gpt_neox-fused": {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 320,
        "num_hidden_layers": 2,
    },
    "gemma2-softcap-window": {
        "model_type": "gemma2",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "vocab_size": 320,
        "num_hidden_layers": 2,
        "sliding_window": 8,
    },
}


class Listener:
    """A recorder and controller that remembers what it heard and stops or pauses when told to."""

    def __init__(self) -> None:
        self.steps: dict[str, list[StepMetrics]] = {}
        self.evaluations: dict[str, list[EvalMetrics]] = {}
        self.stop: set[str] = set()
        self.pause_after: int | None = None
        self.seen = 0

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        self.steps.setdefault(run, [])

    def step(self, run: str, metrics: StepMetrics) -> None:
        self.steps[run].append(metrics)

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        self.evaluations.setdefault(run, []).append(metrics)

    def ended(self, result: RunResult) -> None: ...

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        return Verdict.STOP if run in self.stop else Verdict.CONTINUE

    def orders(self) -> dict[str, Order]:
        return {}

    def saved(self, run: str, step: int) -> None: ...

    def pause_requested(self) -> bool:
        self.seen += 1
        return self.pause_after is not None and self.seen > self.pause_after

    def losses(self, run: str) -> list[float]:
        return [m.loss for m in self.steps[run]]


def tiny(shape: str, dtype: str = "float64") -> ModelSpec:
    return ModelSpec(name=shape, source="random", dtype=dtype, config=pairs(SHAPES[shape]))


def run_pack(base: BaseModel, jobs: list[LaneJob], listener: Listener, max_lanes: int) -> dict[str, LaneEnd]:
    queue = list(jobs)
    pack = Pack(base, listener, listener, max_lanes)
    try:
        ends = [end for group in pack.train(lambda: queue.pop(0) if queue else None) for end in group]
    finally:
        pack.close()
    return {end.job.run: end for end in ends}
