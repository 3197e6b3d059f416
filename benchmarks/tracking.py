"""What recording costs a training step: 16 lanes, an MLflow server that is up, and one that is down.

One pack trains on; its steps fall into blocks that take turns: nothing is recorded, everything is recorded and sent to
a real server on this machine, everything is recorded and its server is down. Outside their own blocks the process that
sends and the server stand still. Counted for each kind of block:

- ``in_step``: processor and wall time inside the recorder's calls, as a share of the time of a step. That is what
  training waits for, and it does not depend on who else uses the machine.
- ``ratio``: time of a step against that of the blocks of the same round without recording (median, and the middle half
  of the rounds). It holds the processes beside, too, and the noise of the machine.
- ``beside``: processor time of the process that sends (niceness 19) and, where it is up, of the server, per step.

    python benchmarks/tracking.py [--model model=tiny] [--lanes 16] [--block 10] [--rounds 6]

Results go to benchmarks/results/tracking.json with the machine they ran on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from mlflow_server import MlflowServer

from lora_lab import data, models
from lora_lab.config import compose_sweep
from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import Pack
from lora_lab.launch.uploading import Uploading
from lora_lab.spec import EvalMetrics, Execution, Order, RunResult, RunSpec, StepMetrics, TrackingSpec, Verdict, run_id
from lora_lab.tracking import Spool

KINDS = ("nothing", "up", "down")
RANKS = (2, 8, 32)
DOWN = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""


@dataclass
class Beside:
    """What works beside the training in one kind of block: its spool, and the processes that send and serve."""

    spool: Spool
    uploading: Uploading
    processes: list[psutil.Process] = field(default_factory=list)

    def all(self) -> list[psutil.Process]:
        """Every process, children included."""
        return [p for top in self.processes for p in [top, *top.children(recursive=True)]]

    def signal(self, number: signal.Signals) -> None:
        """Stop them or let them go on."""
        for process in self.all():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def seconds(self) -> float:
        """Processor time they have taken."""
        total = 0.0
        for process in self.all():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


class Turns:
    """The recorder and controller of the pack: blocks take turns, and each is timed."""

    def __init__(self, beside: dict[str, Beside], lanes: int, block: int, rounds: int) -> None:
        self.beside, self.lanes, self.block, self.rounds = beside, lanes, block, rounds
        self.kind, self.done, self.heard = "nothing", 0, 0
        self.blocks: list[dict[str, Any]] = []
        self._inside = [0.0, 0.0]
        self._first = True

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        for other in self.beside.values():
            other.spool.started(run, spec, total_steps, first_step)

    def step(self, run: str, metrics: StepMetrics) -> None:
        self._timed(lambda spool: spool.step(run, metrics))
        self.heard += 1
        if self.heard == self.lanes:
            self.heard = 0
            self._stepped()

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        self._timed(lambda spool: spool.evaluation(run, metrics))

    def _timed(self, call: Callable[[Spool], None]) -> None:
        if self.kind == "nothing":
            return
        wall, busy = time.perf_counter(), time.thread_time()
        call(self.beside[self.kind].spool)
        self._inside[0] += time.perf_counter() - wall
        self._inside[1] += time.thread_time() - busy

    def _stepped(self) -> None:
        """A step of the whole pack is done: the first of a block is not counted, the last one ends it."""
        if self._first:
            self._first = False
            self._inside = [0.0, 0.0]
            self.done, self.began = 0, time.perf_counter()
            self.busy = 0.0 if self.kind == "nothing" else self.beside[self.kind].seconds()
            return
        self.done += 1
        if self.done < self.block:
            return
        seconds = (time.perf_counter() - self.began) / self.block
        inside = [value / self.block / seconds for value in self._inside]
        busy = 0.0 if self.kind == "nothing" else self.beside[self.kind].seconds() - self.busy
        kept = {"kind": self.kind, "seconds": seconds, "in_step_wall": inside[0], "in_step_cpu": inside[1]}
        self.blocks.append(kept | {"beside_cpu_seconds": busy / self.block})
        print(f"{len(self.blocks):3} {self.kind:8} {seconds:.3f} s a step, {inside[1]:.3%} of it recording", flush=True)
        self._next()

    def _next(self) -> None:
        if self.kind in self.beside:
            self.beside[self.kind].signal(signal.SIGSTOP)
        turn, place = divmod(len(self.blocks), len(KINDS))
        order = KINDS if turn % 2 == 0 else KINDS[::-1]
        self.kind, self._first = order[place], True
        if self.kind in self.beside:
            self.beside[self.kind].signal(signal.SIGCONT)

    def ended(self, result: RunResult) -> None: ...

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        return Verdict.CONTINUE

    def orders(self) -> dict[str, Order]:
        return {}

    def saved(self, run: str, step: int) -> None: ...

    def pause_requested(self) -> bool:
        return len(self.blocks) >= self.rounds * len(KINDS)


@contextlib.contextmanager
def uploading(sweep: Any, folder: Path, uri: str, server: MlflowServer | None) -> Iterator[Beside]:
    """A spool and the process that sends it, stopped until its first block."""
    execution = Execution(str(folder), tracking=TrackingSpec(uri=uri))
    made = Beside(Spool(folder), Uploading(sweep, execution))
    made.uploading.start()
    assert made.uploading._process is not None
    made.processes.append(psutil.Process(made.uploading._process.pid))
    if server is not None and server._process is not None:
        made.processes.append(psutil.Process(server._process.pid))
    try:
        yield made
    finally:
        made.signal(signal.SIGCONT)
        made.spool.close()
        lag = made.uploading.close(30.0, report=False)
        print(f"{uri}: {lag.metrics} lines not sent", flush=True)


def summary(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """The shares and ratios of each kind of block."""
    blocks = blocks[: len(blocks) // len(KINDS) * len(KINDS)]  # whole rounds
    turns = [blocks[i : i + len(KINDS)] for i in range(0, len(blocks), len(KINDS))]
    found: dict[str, Any] = {"step_seconds": statistics.median(b["seconds"] for b in blocks if b["kind"] == "nothing")}
    for kind in KINDS[1:]:
        ratios = []
        for turn in turns:
            by_kind = {block["kind"]: block for block in turn}
            ratios.append(by_kind[kind]["seconds"] / by_kind["nothing"]["seconds"])
        mine = [block for block in blocks if block["kind"] == kind]
        quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        found[kind] = {
            "in_step_cpu": statistics.median(block["in_step_cpu"] for block in mine),
            "in_step_wall": statistics.median(block["in_step_wall"] for block in mine),
            "ratio": {"median": quarters[1], "middle_half": [quarters[0], quarters[2]]},
            "beside_cpu_seconds": statistics.median(block["beside_cpu_seconds"] for block in mine),
        }
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description="what recording costs a training step")
    parser.add_argument("--model", default="model=smollm2_135m", help="an override that names the model")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--block", type=int, default=10, help="steps of a block that are counted")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of each kind")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "tracking.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = (args.block + 1) * args.rounds * len(KINDS) * 3 // 2  # lanes join one after another
    words = [args.model, "data.train_size=512", "data.eval_size=8", "budget.batch_size=1", f"budget.steps={steps}"]
    sweep = compose_sweep("rank_alpha", [*words, "evaluation.every_steps=null"]).sweep
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = MlflowServer(place / "server")
        server.start()
        stack.callback(server.kill)
        beside = {
            "up": stack.enter_context(uploading(sweep, place / "up", server.uri, server)),
            "down": stack.enter_context(uploading(sweep, place / "down", DOWN, None)),
        }
        time.sleep(20)  # importing MLflow is behind them
        base = models.load(sweep.base.model)
        tokens = data.load(sweep.base.data, base.tokenizer)
        jobs = [
            LaneJob(
                run_id(i, 0), sweep.base.at({"method.r": (2, 8, 32)[i % 3]}, seed=i), tokens, place / "lanes" / str(i)
            )
            for i in range(args.lanes)
        ]
        for other in beside.values():
            other.signal(signal.SIGSTOP)
        turns = Turns(beside, args.lanes, args.block, args.rounds)
        pack = Pack(base, turns, turns, args.lanes)
        for _ in pack.train(lambda: jobs.pop(0) if jobs else None):
            pass
        pack.close()
    found = summary(turns.blocks)
    print(json.dumps(found, indent=1))
    facts = machine.facts() | {"threads": args.threads, "niceness": os.nice(0)}
    shape = {"model": args.model, "lanes": args.lanes, "block": args.block, "rounds": args.rounds}
    machine.keep(args.results, [{"machine": facts, **shape, **found, "blocks": turns.blocks}])
    print(f"kept in {args.results}")


if __name__ == "__main__":
    main()
