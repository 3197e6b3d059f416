"""A run that is wider than a device: processes that hold a part of its base each train it in lockstep.

They are started here and are of this machine, as torchrun's are; :mod:`~lora_lab.worker.shard` is what they do. The
first of them tells what happens and asks whether to go on; this process answers, and ends them all when one is lost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lora_lab.spec import Controller, Outcome, Recorder
from lora_lab.worker import shard
from lora_lab.worker.shard import Asked, Ended, Lost

PRELOADED = ["lora_lab.worker.shard", "lora_lab.methods.lora", "transformers.models.llama.modeling_llama"]
END_SECONDS = 30.0
"""How long processes may take to end once their run has."""


def train_wide(asked: Asked, controller: Controller, recorder: Recorder) -> Ended:
    """Train a run in ``model.shards`` processes; ``controller`` and ``recorder`` are the engine's ports.

    Whatever goes wrong in one of them is in what is returned; what the ports raise ends them and is raised.

    Raises:
        StorageError, SweepFolderError: one of them could not write: the study's trouble, not the run's.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    count = asked.spec.model.shards
    threads = max(1, torch.get_num_threads() // count)
    with tempfile.TemporaryDirectory(prefix="lora-lab-") as place:
        asked = replace(asked, rendezvous=str(Path(place) / "rendezvous"), threads=threads)
        pipes: list[Connection] = []
        processes: list[BaseProcess] = []
        try:
            for rank in range(count):
                mine, theirs = context.Pipe()
                process: BaseProcess = context.Process(
                    target=shard.hold, args=(rank, asked, theirs), name=f"shard {rank}"
                )
                process.start()
                theirs.close()
                pipes.append(mine)
                processes.append(process)
            ended = serve(pipes, processes, controller, recorder)
            if ended.wrong is not None:
                raise ended.wrong
            until = time.monotonic() + END_SECONDS
            for process in processes if ended.lost is None else ():
                process.join(max(0.0, until - time.monotonic()))
            return ended
        finally:
            for process in processes:
                process.kill()
                process.join()
            for pipe in pipes:
                pipe.close()


def serve(
    pipes: Sequence[Connection], processes: Sequence[BaseProcess], controller: Controller, recorder: Recorder
) -> Ended:
    """Hear and answer until the run has ended, in one way or another; a process that is gone tells by its exit code."""
    sentinels = {process.sentinel: process for process in processes}
    heard = list(pipes)
    while True:
        ready = wait([*heard, *sentinels])
        for pipe in (one for one in ready if isinstance(one, Connection)):
            try:
                said = pipe.recv()
            except (EOFError, OSError):  # at a message's end, or in the middle of one
                heard.remove(pipe)  # its process has ended, and is in `ready`, now or soon
                continue
            match said:
                case Ended():
                    return said
                case ("decide", run, metrics):
                    _answer(pipe, controller.decide(run, metrics))
                case ("orders",):
                    _answer(pipe, (controller.pause_requested(), dict(controller.orders())))
                case ("saved", run, step):
                    controller.saved(run, step)
                case (name, *arguments):
                    getattr(recorder, name)(*arguments)
        for sentinel, process in [(one, sentinels[one]) for one in ready if isinstance(one, int)]:
            process.join()
            if process.exitcode == 0 and process is not processes[0]:
                del sentinels[sentinel]  # it has done its part
            elif not any(pipe.poll() for pipe in heard):
                text = f"{process.name} of {len(processes)} ended with code {process.exitcode} (killed for its memory?)"
                return Ended(lost=Lost(Outcome.FAILED, text))


def _answer(pipe: Connection, said: Any) -> None:
    """Tell a process, if it is still there."""
    with contextlib.suppress(OSError):
        pipe.send(said)
