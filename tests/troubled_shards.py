"""In place of :func:`lora_lab.worker.shard.hold`: processes of a divided run in which something goes wrong.

They are a module of their own because the processes find them by its name.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from lora_lab.engine.pack import Pack
from lora_lab.errors import SweepFolderError
from lora_lab.worker import shard

HOLD = shard.hold


def short_of_memory(rank: int, asked: Any, pipe: Any) -> None:
    """The last process alone has too little memory for more than two sequences in its second step."""
    real = Pack._gradients

    def limited(self: Pack) -> Any:
        if rank and any(lane.step == 1 and lane.spec.budget.micro > 2 for lane in self.lanes):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
        return real(self)

    Pack._gradients = limited  # type: ignore[method-assign]
    HOLD(rank, asked, pipe)


def no_space(rank: int, asked: Any, pipe: Any) -> None:
    """The first process cannot write."""

    def full(*asked: Any) -> Any:
        raise SweepFolderError("no space left")

    if rank == 0:
        shard._train = full
    HOLD(rank, asked, pipe)


def half_a_message(pipe: Any) -> None:
    """Lost in the middle of what it says."""
    os.write(pipe.fileno(), (100).to_bytes(4, "big") + b"half")
    os._exit(3)


def a_question(pipe: Any) -> None:
    """Lost before it is answered."""
    pipe.send(("orders",))
    os._exit(3)
