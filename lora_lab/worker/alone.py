"""One configuration, alone in this process: the real loop on sequences of full length, and what it took.

    python -m lora_lab.worker.alone ASKED.json ANSWER.json

Two steps are followed tensor by tensor (:class:`~lora_lab.planner.ledger.Ledger`): the first makes the optimizer's
state, the peak is that of the second. The others run freely, for the resident set, CUDA's allocator and the clock.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from lora_lab import models
from lora_lab.data import Split, Tokenised
from lora_lab.data.split import Tokens
from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import Pack
from lora_lab.files import read_json, write_json
from lora_lab.models import BaseModel
from lora_lab.models.quantised import constants
from lora_lab.planner.ledger import Ledger
from lora_lab.spec import EvalMetrics, Order, RunResult, RunSpec, StepMetrics, Verdict, from_tree
from lora_lab.worker.bases import device_name

FOLLOWED = 2
"""Steps that are followed tensor by tensor."""


class _Enough(Exception):
    """All that was to be measured was."""


class _Meter:
    """The ports of the engine: counts steps, and reads the meters between them."""

    def __init__(self, base: BaseModel, steps: int) -> None:
        self.base, self.steps = base, steps
        self.ledger = Ledger(data=True)
        self.followed = ExitStack()
        self.count, self.live, self.allocated = 0, 0, 0
        self.times: list[float] = []
        self.at = 0.0

    def begin(self) -> None:
        """Follow what comes from here on; what the base holds is there already."""
        model = self.base.model
        scales = [tensor for module in model.modules() for tensor in constants(module)]
        for tensor in (*scales, *model.parameters(), *model.buffers()):
            self.ledger.book(tensor, "all")
        self.followed.enter_context(self.ledger)

    def step(self, run: str, metrics: StepMetrics) -> None:
        """A step was taken."""
        self.count += 1
        if self.count < FOLLOWED:
            self.ledger.begin()
        elif self.count == FOLLOWED:
            self.live = max(sum(live) for _, live in self.ledger.moments)
            self.followed.close()
            self.ledger.moments.clear()
            forget_peak(self.base)
        else:
            self.times.append(time.perf_counter() - self.at)
            if self.base.device.type == "cuda":
                self.allocated = max(self.allocated, torch.cuda.max_memory_allocated(self.base.device))
            if self.count == FOLLOWED + self.steps:
                raise _Enough
        self.at = time.perf_counter()

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        """A run enters the pack."""

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        """An evaluation."""

    def ended(self, result: RunResult) -> None:
        """A run ended."""

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        """Go on."""
        return Verdict.CONTINUE

    def orders(self) -> dict[str, Order]:
        """None."""
        return {}

    def saved(self, run: str, step: int) -> None:
        """Nobody asked."""

    def pause_requested(self) -> bool:
        """No."""
        return False


def measure(spec: RunSpec, device: str, steps: int) -> dict[str, Any]:
    """What training ``spec`` takes, in bytes and seconds; see :class:`lora_lab.worker.measuring.Measured`."""
    before = int(psutil.Process().memory_info().rss)
    base = models.load(spec.model, device_name(device))
    meter = _Meter(base, steps)
    tokens = full_length(spec, rows=spec.budget.batch_size * (FOLLOWED + steps + 1))
    with tempfile.TemporaryDirectory() as folder:
        pack = Pack(base, meter, meter, max_lanes=1)
        jobs = [LaneJob("alone", spec, tokens, Path(folder))]
        try:
            meter.begin()
            for ends in pack.train(lambda: jobs.pop() if jobs else None):
                raise RuntimeError(ends[0].message or f"it ended {ends[0].outcome}")
        except _Enough:
            lane = pack.lanes[0]
        finally:
            meter.followed.close()
            pack.close()
    cuda = base.device.type == "cuda"
    return {
        "trainable_parameters": lane.attachment.count,
        "live_bytes": meter.live,
        "rss_bytes": peak_rss(),
        "rss_before_bytes": before,
        "allocated_bytes": max(meter.allocated, lane.peak) if cuda else None,
        "reserved_bytes": torch.cuda.memory_reserved(base.device) if cuda else None,
        "seconds_per_step": float(np.median(meter.times)),
    }


def full_length(spec: RunSpec, rows: int) -> Tokenised:
    """``rows`` sequences of ``data.max_length`` tokens, all of them targets but the first."""
    length = spec.data.max_length
    supervised = np.tile(np.r_[0, np.ones(length - 1)].astype(np.uint8), rows)
    made = Tokens(
        ids=np.random.default_rng(0).integers(0, 64, rows * length, dtype=np.int32),
        supervised=supervised,
        offsets=np.arange(rows + 1, dtype=np.int64) * length,
        prompt_lengths=np.zeros(rows, np.int32),
        full_lengths=np.full(rows, length, np.int32),
        prints=np.zeros(rows, np.uint64),
        texts=np.frombuffer(b"[[], []]", np.uint8),
        digest="full length",
        running=True,
    )
    split = Split.of((made,), np.zeros(rows, np.int32), np.arange(rows, dtype=np.int64))
    return Tokenised(split, split, made.digest)


def forget_peak(base: BaseModel) -> None:
    """From here on the peaks count anew, where the system allows it; memory that nobody needs is given back first."""
    gc.collect()
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        peak = Path("/proc/self/clear_refs")
        if os.access(peak, os.W_OK):
            peak.write_text("5")


def peak_rss() -> int:
    """The most bytes that were resident since :func:`forget_peak` (where that is not possible: since the start)."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    """Read what is asked, measure, write the answer."""
    asked = read_json(Path(sys.argv[1]))
    spec = from_tree(RunSpec, asked["spec"], "spec")
    write_json(Path(sys.argv[2]), measure(spec, asked["device"], asked["steps"]), durable=False)


if __name__ == "__main__":
    main()
