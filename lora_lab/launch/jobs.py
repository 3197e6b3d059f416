"""The jobs of a sweep, in a file of its folder, so that any command finds them: ``jobs.log``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from lora_lab.errors import ConfigError, LauncherError
from lora_lab.launch.choosing import launcher_for
from lora_lab.launch.launcher import Job, JobState, Launcher
from lora_lab.spec import Execution, LauncherSpec, from_tree, to_tree
from lora_lab.study.lines import Lines
from lora_lab.study.look import execution_of

FILE = "jobs.log"
UNKNOWN = "unknown"

log = logging.getLogger(__name__)


class Jobs:
    """The jobs of a sweep, in a file of its folder, so that ``status``, ``cancel`` and ``workers`` find them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def all(self) -> list[Job]:
        """Every job that was ever started, in order."""
        if not self._path.exists():
            return []
        return [Job(**tree) for tree in self._lines(writes=False).read(0)]

    def latest(self, launcher: str | None = None) -> dict[int, Job]:
        """The last job at each place, of one launcher or of any."""
        return {job.place: job for job in self.all() if launcher in (None, job.launcher)}

    def add(self, jobs: Sequence[Job]) -> None:
        """Remember jobs that were started."""
        lines = self._lines(writes=True)
        with lines.locked() as file:
            lines.append(file, [asdict(job) for job in jobs])

    def _lines(self, *, writes: bool) -> Lines:
        return Lines(self._path, durable=False, remedy="Move the file away; it only names jobs.", writes=writes)


def execution_with(folder: Path, settings: Sequence[str] = ()) -> Execution:
    """How the sweep in ``folder`` was last carried out, but for ``settings`` (``launcher.time=30``).

    Raises:
        ConfigError: a setting that is none of the launcher's.
        SpecError: no such setting, or a value out of its domain.
    """
    tree = {name: value for name, value in execution_of(folder).items() if name != "study"}
    launcher = dict(tree.get("launcher") or {})
    for word in settings:
        path, _, value = word.partition("=")
        group, _, name = path.partition(".")
        if group != "launcher":
            raise ConfigError(f"{path}: only the launcher's settings can be other than the sweep was begun with.")
        launcher[name or "name"] = yaml.safe_load(value)
    execution = from_tree(Execution, tree | {"folder": str(folder), "launcher": to_tree(LauncherSpec())})
    return replace(execution, launcher=from_tree(LauncherSpec, launcher, "launcher"))


def described(execution: Execution, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """``jobs`` with their states, for people and scripts; ``unknown`` where the launcher does not answer now."""
    states: dict[str, JobState] = {}
    for launcher, mine in _by_launcher(execution, jobs):
        with contextlib.suppress(LauncherError):
            states |= launcher.states(mine)
    return [
        {"place": job.place, "launcher": job.launcher, "id": job.id, "state": str(states.get(job.id, UNKNOWN))}
        | {"workers": job.workers, "log": str(Path(execution.folder) / job.log)}
        for job in jobs
    ]


def alive(execution: Execution, jobs: Sequence[Job]) -> list[Job]:
    """Those of ``jobs`` that work or will, as far as their launchers answer."""
    found: list[Job] = []
    for launcher, mine in _by_launcher(execution, jobs):
        states = launcher.states(mine)
        found += [job for job in mine if states[job.id].alive]
    return sorted(found, key=lambda job: job.place)


def stop(execution: Execution, jobs: Sequence[Job]) -> None:
    """Let ``jobs`` save what they train and end."""
    for launcher, mine in _by_launcher(execution, jobs):
        launcher.stop(mine)


def _by_launcher(execution: Execution, jobs: Sequence[Job]) -> Iterator[tuple[Launcher, list[Job]]]:
    """The launchers that started ``jobs`` (a sweep may have used several), those that can be reached."""
    for name in dict.fromkeys(job.launcher for job in jobs):
        spec = execution.launcher if execution.launcher.name == name else LauncherSpec(name=name)
        try:
            launcher = launcher_for(replace(execution, launcher=spec), tied=False)
        except LauncherError as error:
            log.warning("jobs of launcher=%s cannot be looked at from here: %s", name, error)
            continue
        with contextlib.closing(launcher):
            yield launcher, [job for job in jobs if job.launcher == name]
