"""One method in a process of its own: ``python -m throughput.child job.json``.

It loads the model, says that it is ready, waits for a line on its input (so that processes that share the machine
begin together), trains, and writes what it found beside the job, as ``job.json.out``.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
import torch

from lora_lab import models
from lora_lab.models import BaseModel
from lora_lab.spec import RunSpec
from lora_lab.spec.tree import from_tree
from throughput.timing import Found
from throughput.workload import Planned, Shape, planned

READY = "ready"


@dataclass(frozen=True)
class Job:
    """What a child does. ``specs`` are trees of the runs' specs by name; ``first`` steps of each are not counted."""

    method: str
    shape: str
    specs: dict[str, Any]
    first: int
    lanes: int = 1
    threads: int = 1
    device: str = "cpu"
    attention: str = "eager"
    every_logit: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a child found. ``peak`` is the machine's best FLOP/s on the model's products, with this child's threads."""

    seconds: float
    flops: float
    losses: dict[str, float]
    loaded_bytes: int
    peak_bytes: int
    peak: float


def load(spec: Any, device: str) -> BaseModel:
    """The base model. A random one for CUDA is drawn there: on a CPU that takes minutes for billions of weights."""
    if spec.source != "random" or not device.startswith("cuda"):
        return models.load(spec, device)
    from transformers import AutoModelForCausalLM

    from lora_lab.models.sources import config_of

    torch.manual_seed(spec.init_seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config_of(spec), dtype=getattr(torch, spec.dtype))
    models.untie(model)
    model.requires_grad_(False)
    model.eval()
    tokenizer = models.load_tokenizer(spec)
    return BaseModel(model, tokenizer, spec, models.role_modules(model, spec), torch.device(device))


def train(job: Job, base: BaseModel, runs: list[Planned]) -> Found:
    """Have the job's method train ``runs``."""
    if job.method == "pack":
        from throughput import packed

        return packed.train(base, runs, job.first, job.lanes)
    base.model.set_attn_implementation(job.attention)
    if job.method == "loop":
        from throughput import loop

        return loop.train(base, runs, job.first)
    from throughput import trainer

    return trainer.train(base, runs, job.first, every_logit=job.every_logit)


def main(path: Path) -> None:
    """Do the job in ``path``."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    job = Job(**json.loads(path.read_text()))
    torch.set_num_threads(job.threads)
    specs = [from_tree(RunSpec, tree) for tree in job.specs.values()]
    base = load(specs[0].model, job.device)
    runs = planned(base, Shape.read(job.shape), list(job.specs), specs)
    shapes, dtype = machine.linear_shapes(base.model), getattr(torch, specs[0].model.dtype)
    print(READY, flush=True)
    sys.stdin.readline()
    peak = machine.gemm_peak(shapes, dtype, base.device)
    loaded = machine.resident_bytes(base.device)
    machine.forget_peak(base.device)
    found = train(job, base, runs)
    most = machine.peak_bytes(base.device)
    peak = max(peak, machine.gemm_peak(shapes, dtype, base.device))
    outcome = Outcome(**asdict(found), loaded_bytes=loaded, peak_bytes=most, peak=peak)
    Path(f"{path}.out").write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
