"""``lora-lab`` in real processes that start in a fraction of a second: forked from one that has its imports done.

``start("sweep", …, dies=…)`` runs the command line in a process of its own, whose output goes to a file. ``dies`` names
the place where it kills itself with SIGKILL: ``module:Class.method``, the number of the call, before or after it; or
where it sleeps until it is woken.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
from command import environment
from permissions import ordinary

POLL_SECONDS = 0.02
PRELOAD = [
    "lora_lab.cli.main",
    "lora_lab.cli.sweep",
    "lora_lab.cli.worker",
    "lora_lab.config",
    "lora_lab.study.study",
    "lora_lab.study.sql_log",
    "lora_lab.launch.local",
    "lora_lab.analysis.folder",
    "lora_lab.cli.summary",
    "lora_lab.tracking.tracker",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "peft",
    "psycopg",
    "processes",
]


@dataclass(frozen=True)
class Death:
    """SIGKILL at the ``call``-th call of ``place`` (``module:Class.method``): before it, or ``after`` it."""

    place: str
    call: int = 1
    after: bool = False


@dataclass(frozen=True)
class Sleep:
    """SIGSTOP after each of these ``calls`` of ``place``: there it stands until :meth:`Started.wake`."""

    place: str
    calls: tuple[int, ...]


@dataclass(frozen=True)
class HalfWrite:
    """SIGKILL in the middle of the ``call``-th write of a checkpoint, half of it written."""

    call: int = 1


@dataclass
class Started:
    """A process of ``lora-lab``, and the file of what it says."""

    process: ForkServerProcess
    output: Path
    _busy: float = 0.0

    def wait(self, seconds: float = 300.0) -> int:
        """Its exit code; negative for a signal."""
        until(lambda: self.process.exitcode is not None, "its end", seconds, self.said)
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def busy_seconds(self) -> float:
        """Processor time that it has spent: how long it worked, whatever else the machine had to do."""
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(self.process.pid).cpu_times()
            self._busy = times.user + times.system
        return self._busy

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def asleep(self) -> bool:
        """It has come to a place where it sleeps."""
        return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

    def wake(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def said(self) -> str:
        """What it has said so far, errors included."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def context() -> ForkServerContext:
    """The server that all are forked from; it starts with the first of them."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOAD)
    return found


def start(
    folder: Path,
    *words: str,
    dies: Death | Sleep | HalfWrite | None = None,
    limit: int | None = None,
    as_user: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Started:
    """Run ``lora-lab`` with ``words`` in ``folder``; ``limit``: no file may grow beyond so many bytes; ``as_user``:
    permissions count for it, also where it is root's; ``variables`` of its environment, beside this process's."""
    output = folder / f"output-{time.monotonic_ns()}.txt"
    variables = environment(**(variables or {}))
    process = context().Process(target=_run, args=(str(folder), str(output), words, dies, limit, as_user, variables))
    process.start()
    return Started(process, output)


def until(
    condition: Callable[[], Any], what: str, seconds: float = 300.0, said: Callable[[], str] = lambda: ""
) -> None:
    """Wait for ``condition``. Looks are counted: time in which this process stood still is nobody's delay. ``said``:
    what tells why it did not come."""
    for _ in range(int(seconds / POLL_SECONDS)):
        if condition():
            return
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"waited in vain for {what}\n{said()}")


def lost_shard(rank: int, asked: Any, pipe: Any) -> None:
    """In place of :func:`lora_lab.worker.shard.hold`: the second process crashes, and the first waits for it."""
    if rank:
        os._exit(3)
    pipe.recv()


def _run(
    folder: str,
    output: str,
    words: tuple[str, ...],
    dies: Death | Sleep | HalfWrite | None,
    limit: int | None,
    as_user: bool,
    variables: Mapping[str, str],
) -> None:
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()  # the server's is as old as the first test that forked from it
    os.environ |= variables
    faulthandler.dump_traceback_later(120, repeat=True)  # where it hangs, if it does
    import torch

    torch.set_num_threads(1)
    if dies is not None:
        _arm(dies)
    if limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond it is an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    from lora_lab.cli.main import main

    with ordinary() if as_user else contextlib.nullcontext():
        code = main(list(words))
    sys.stdout.flush()
    os._exit(code)


def _arm(dies: Death | Sleep | HalfWrite) -> None:
    place = "lora_lab.engine.checkpoint:write_tensors" if isinstance(dies, HalfWrite) else dies.place
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        due = not isinstance(dies, Sleep) and len(calls) == dies.call
        if due and isinstance(dies, HalfWrite):
            size = real(*args, **kwargs)
            args[0].flush()
            os.ftruncate(args[0].fileno(), size // 2)
        if due and not (isinstance(dies, Death) and dies.after):
            os.kill(os.getpid(), signal.SIGKILL)
        value = real(*args, **kwargs)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(dies, Sleep) and len(calls) in dies.calls:
            os.kill(os.getpid(), signal.SIGSTOP)
        return value

    setattr(owner, name, dying)
