"""What each of the processes does that hold a run's base together: the engine's own loop, in lockstep.

Whatever decides what is done next must be the same in all of them: it is computed from the same numbers, or the first
process decides for all (:meth:`~lora_lab.models.shards.Shards.agree`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lora_lab import models
from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import Pack
from lora_lab.errors import LoraLabError, StorageError, SweepFolderError
from lora_lab.models import BaseModel
from lora_lab.models.shards import Shards
from lora_lab.planner.device import device_kind
from lora_lab.spec import EvalMetrics, Order, Outcome, RunResult, RunSpec, StepMetrics, Verdict
from lora_lab.worker import files, stages
from lora_lab.worker.bases import base_scores, held_bytes, tokenised
from lora_lab.worker.facts import Teller
from lora_lab.worker.results import Memory, outcome_of, settle
from lora_lab.worker.scoring import scores_at_end, scores_during


@dataclass(frozen=True)
class Asked:
    """What to train, for all processes: the run, its files' ``folder``, and the ``sweep``'s.

    ``key`` is its checkpoints', ``stem`` whether it keeps one for longer runs, ``predicted`` the bytes that were
    planned, ``started`` when it was begun. ``rendezvous`` is a file in which the processes find each other.
    """

    run: str
    trial: int
    point: Mapping[str, Any]
    spec: RunSpec
    key: str
    folder: Path
    sweep: Path
    device: str
    label: str
    started: float
    predicted: int
    stem: bool
    checkpoint_seconds: float
    keep_checkpoints: bool
    rendezvous: str = ""
    threads: int = 1


@dataclass(frozen=True)
class Lost:
    """Why a process could not go on."""

    outcome: Outcome
    message: str


@dataclass(frozen=True)
class Ended:
    """What came of the run: its ``result`` (``None``: it was stopped before it began, or is another worker's by now),
    whether it is ``paused``, and what to ``note`` beside it; or why it was ``lost``, or what is ``wrong`` that is the
    study's and not the run's: a full disk."""

    result: RunResult | None = None
    paused: bool = False
    note: str | None = None
    lost: Lost | None = None
    wrong: LoraLabError | None = None


def hold(rank: int, asked: Asked, pipe: Connection) -> None:
    """Train as process ``rank`` of ``model.shards``, and say through ``pipe`` what comes of it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the worker is told, and asks for a pause
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        ended = _train(rank, asked, pipe)
    except (StorageError, SweepFolderError) as error:
        ended = Ended(wrong=error)
    except Exception as error:  # whatever it is, the others cannot go on without this process
        text = str(error) if isinstance(error, LoraLabError) else traceback.format_exc()
        ended = Ended(lost=Lost(outcome_of(error), text))
    failed = ended.lost is not None or ended.wrong is not None
    if rank == 0 or failed:
        pipe.send(ended)
    if failed:  # the worker ends all of them: before that nobody's may say that this one is gone
        with contextlib.suppress(EOFError, OSError):
            while True:
                pipe.recv()
    else:
        dist.destroy_process_group()


def _train(rank: int, asked: Asked, pipe: Connection) -> Ended:
    spec, device = asked.spec, torch.device(device_kind(asked.device))
    torch.set_num_threads(asked.threads)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are all on this machine
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    rendezvous = f"file://{asked.rendezvous}"
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=spec.model.shards)
    shards = Shards(rank, spec.model.shards, trains(spec))
    base = models.load(spec.model, str(device), shards)
    before = max(0, held_bytes(base) - _own_bytes(base))
    tokens = tokenised(base, spec, {})
    ports = Ports(pipe, shards)
    pack = Pack(
        base,
        ports,
        ports,
        1,
        asked.checkpoint_seconds,
        keep_checkpoints=asked.keep_checkpoints,
        score=scores_during,
    )
    scores = base_scores(pack.mount, spec, tokens, asked.sweep)
    teller = Teller(base)
    if shards.first:
        teller.begun(asked.folder, tokens)
    stem = stages.stem_for(spec, len(tokens.train), kept=asked.stem)
    jobs = [LaneJob(asked.run, spec, tokens, asked.folder, asked.key, stem)]
    # No question is asked after the end: where this process alone has too little memory, the others are in the step.
    ends = next(pack.train(lambda: jobs.pop() if jobs else None), [])
    if not ends or ports.orders().get(asked.run) is Order.DROP:
        return Ended()
    (end,) = ends
    if end.lane is None or end.outcome is Outcome.OUT_OF_MEMORY:
        return Ended(lost=Lost(end.outcome, end.message or ""))
    scored = scores_at_end(pack.mount, [end.lane] if end.outcome is Outcome.COMPLETED else [])
    result = settle(
        end,
        base=base,
        scores=scores,
        scored=scored.get(asked.run),
        trial=asked.trial,
        point=asked.point,
        folder=asked.sweep,
        started=asked.started,
        memory=Memory(asked.predicted, before, asked.label),
    )
    if shards.first:
        teller.ended(asked.folder, end.lane, 1)
        if not end.paused:
            files.finish(end.lane, result.outcome, keep=asked.keep_checkpoints)
    return Ended(result, end.paused, end.lane.note)


def trains(spec: RunSpec) -> torch.dtype | None:
    """The dtype in which the base's own parameters train; ``None`` where they do not."""
    if spec.method.name != "full":
        return None
    found: torch.dtype = getattr(torch, spec.model.dtype if spec.method.dtype == "auto" else spec.method.dtype)
    return found


@dataclass
class Ports:
    """The engine's ports in each process: the first passes everything on, and all do as it is told."""

    pipe: Connection
    shards: Shards
    _orders: dict[str, Order] = field(default_factory=dict)

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        """See :class:`~lora_lab.spec.Recorder`."""
        self._tell("started", run, spec, total_steps, first_step)

    def step(self, run: str, metrics: StepMetrics) -> None:
        """See :class:`~lora_lab.spec.Recorder`."""
        self._tell("step", run, metrics)

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        """See :class:`~lora_lab.spec.Recorder`."""
        self._tell("evaluation", run, metrics)

    def ended(self, result: RunResult) -> None:
        """See :class:`~lora_lab.spec.Recorder`."""
        self._tell("ended", result)

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        """See :class:`~lora_lab.spec.Controller`."""
        verdict: Verdict = self._answer("decide", run, metrics)
        return verdict

    def pause_requested(self) -> bool:
        """See :class:`~lora_lab.spec.Controller`. Asked first at every boundary, so the orders come along."""
        paused, self._orders = self._answer("orders")
        return bool(paused)

    def orders(self) -> Mapping[str, Order]:
        """See :class:`~lora_lab.spec.Controller`."""
        return self._orders

    def saved(self, run: str, step: int) -> None:
        """See :class:`~lora_lab.spec.Controller`."""
        self._tell("saved", run, step)

    def _tell(self, *said: Any) -> None:
        if self.shards.first:
            self.pipe.send(said)

    def _answer(self, *asked: Any) -> Any:
        self._tell(*asked)
        return self.shards.agree(self.pipe.recv() if self.shards.first else None)


def _own_bytes(base: BaseModel) -> int:
    """Of the weights, those that this process holds."""
    parts = [getattr(parameter, "to_local", lambda p=parameter: p)() for parameter in base.model.parameters()]
    return sum(part.numel() * part.element_size() for part in parts)


def _end_with_parent() -> None:
    """A worker that is killed leaves no one behind."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
