"""Workers as Ray actors (extra ``ray``), each with its share of a node, and another node when it loses its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_lab.errors import LauncherError
from lora_lab.launch.launcher import Job, JobState, not_installed, worker_words
from lora_lab.spec import Execution

NAMESPACE = "lora-lab"
ANSWER_SECONDS = 1.0
"""How long an actor may take to say how its worker is; one that waits for a place says nothing."""


class Ray:
    """An actor is a job, known by its name. It runs ``lora-lab worker`` in a process of its own and, when that is done,
    writes its exit code beside the log and ends. Where its node is lost, or it is killed, Ray starts it again."""

    def __init__(self, execution: Execution) -> None:
        """Connect to ``launcher.address``, or start a cluster here (``local``).

        Raises:
            LauncherError: Ray is not installed, or there is no cluster at the address.
        """
        self._execution = execution
        self._folder = Path(execution.folder).absolute()
        self.survives = execution.launcher.address != "local"
        self._waiting: dict[str, Any] = {}
        _connect(execution.launcher.address)

    def start(self, places: Sequence[int]) -> list[Job]:
        """See :class:`~lora_lab.launch.launcher.Launcher`."""
        import ray

        launcher = self._execution.launcher
        (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        jobs = []
        for place in places:
            name = f"{self._folder.name}-{place}-{secrets.token_hex(4)}"
            log = Path("logs") / f"ray-{place}.txt"
            ray.remote(Keeper).options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=launcher.cpus_per_worker or 1,
                num_gpus=launcher.gpus_per_worker,
                resources=dict(launcher.resources),
                scheduling_strategy="SPREAD" if launcher.placement == "spread" else "DEFAULT",
                max_restarts=-1,
                max_task_retries=0,
            ).remote(worker_words(self._execution), str(self._folder / log), str(self._code(name)))
            jobs.append(Job("ray", place, name, str(log)))
        return jobs

    def states(self, jobs: Sequence[Job]) -> dict[str, JobState]:
        """See :class:`~lora_lab.launch.launcher.Launcher`."""
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

        found: dict[str, JobState] = {}
        for job in jobs:
            code = self._code(job.id)
            if code.exists():
                found[job.id] = JobState.ENDED if code.read_text() in ("0", "130") else JobState.LOST
            elif (actor := _actor(job.id)) is None:
                found[job.id] = JobState.LOST
            elif job.id not in self._waiting:
                self._waiting[job.id] = actor.alive.remote()
        asked = {self._waiting[job.id]: job.id for job in jobs if job.id not in found}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
        for answer, name in asked.items():
            found[name] = JobState.WAITING
            if answer in ready:
                del self._waiting[name]
                try:
                    ray.get(answer)
                    found[name] = JobState.RUNNING
                except ActorUnavailableError:
                    found[name] = JobState.WAITING
                except ActorDiedError:
                    found[name] = JobState.ENDED if self._code(name).exists() else JobState.LOST
                except RayError as error:
                    raise LauncherError(f"Ray does not answer: {error}") from error
        return found

    def stop(self, jobs: Sequence[Job]) -> None:
        """See :class:`~lora_lab.launch.launcher.Launcher`. One that waits leaves the queue."""
        states = self.states(jobs)
        for job in jobs:
            if states[job.id] is JobState.RUNNING and (actor := _actor(job.id)) is not None:
                actor.stop.remote()
        self.kill([job for job in jobs if states[job.id] is JobState.WAITING])

    def kill(self, jobs: Sequence[Job]) -> None:
        """See :class:`~lora_lab.launch.launcher.Launcher`."""
        import ray

        for job in jobs:
            if (actor := _actor(job.id)) is not None:
                ray.kill(actor, no_restart=True)
                with contextlib.suppress(FileExistsError):
                    self._code(job.id).touch(exist_ok=False)
                    self._code(job.id).write_text("130")

    def close(self) -> None:
        """Leave the cluster; one of our own ends."""
        import ray

        ray.shutdown()

    def _code(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}.code"


class Keeper:
    """The actor: keeps one worker, and is done with it.

    A signal of Ray's own ends it without its knowledge; then the worker sees that it is gone, saves and ends
    (``--parent``). Made anew after a loss, it starts a worker again.
    """

    def __init__(self, words: list[str], log: str, code: str) -> None:
        environment = dict(os.environ)
        self._asked = False
        with Path(log).open("ab") as file:
            self._worker = subprocess.Popen(
                [sys.executable, *words, "--parent", str(os.getpid())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._code = Path(code)
        threading.Thread(target=self._end_with_it, daemon=True).start()

    def alive(self) -> bool:
        """Whether the worker still runs."""
        return self._worker.poll() is None

    def stop(self) -> None:
        """Let the worker save and end."""
        self._asked = True
        if self._worker.poll() is None:
            self._worker.send_signal(signal.SIGTERM)

    def _end_with_it(self) -> None:
        import ray

        code = self._worker.wait()
        if self._asked and code == -signal.SIGTERM:  # it had not begun to listen, or had done with it
            code = 130
        self._code.write_text(str(code))
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _connect(address: str) -> None:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise not_installed("ray", "ray", error) from error
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LauncherError(
            f"launcher.address={address}: no Ray cluster answers there ({str(error).splitlines()[0]}). Start one with "
            "`ray start --head`, or use launcher.address=local for one that lives with the sweep."
        ) from error


def _actor(name: str) -> Any:
    """The actor of that name; ``None`` where there is none any more."""
    import ray

    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
