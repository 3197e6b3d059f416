"""Look at a study from outside, without working on it and without writing anything."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from pathlib import Path
from typing import Any

from lora_lab.errors import LoraLabError
from lora_lab.files import read_json
from lora_lab.spec import FIRST_BRANCH, thaw
from lora_lab.spec.result import MAPPINGS
from lora_lab.study.entries import WorkerState
from lora_lab.study.lease import is_gone
from lora_lab.study.log import Unreachable
from lora_lab.study.state import State

STORAGE_VARIABLE = "LORA_LAB_STORAGE"
"""The environment variable that gives the storage's URL where it has a password, which no file keeps."""

log = logging.getLogger(__name__)


def look(folder: Path, storage: str | None = None) -> State | None:
    """What the log of the study in ``folder`` adds up to; ``None`` where there is none, or it cannot be read now: then
    the log of this program says why."""
    if storage is None:
        storage = execution_of(folder).get("storage")
    state, collects = State(), gc.isenabled()
    gc.disable()  # it would look through ten thousand results again and again
    try:
        for event in _events(folder, storage):
            state.take(event)
    except FileNotFoundError:
        return None
    except (Unreachable, LoraLabError) as error:
        log.warning("%s: its study cannot be read now: %s", folder, error)
        return None
    finally:
        if collects:
            gc.enable()
    return state


def result_trees(state: State) -> list[dict[str, Any]]:
    """The results of the sweep's own runs, by trial and seed, as ``result.json`` has them."""
    results = [result for result in state.results.values() if result.trial < FIRST_BRANCH]
    results.sort(key=lambda result: (result.trial, result.seed))
    return [vars(result) | {name: thaw(getattr(result, name)) for name in MAPPINGS} for result in results]


def living(state: State) -> list[WorkerState]:
    """The workers that are not known to be dead, the oldest first."""
    return [worker for worker in state.workers.values() if not is_gone(worker.process)]


def execution_of(folder: Path) -> dict[str, Any]:
    """The tree of ``execution.json``: how the sweep was last carried out; empty where nobody said.

    Its ``storage`` is that of :data:`STORAGE_VARIABLE` where that is set.
    """
    try:
        tree: dict[str, Any] = read_json(folder / "execution.json")
    except FileNotFoundError:
        tree = {}
    return tree | {"storage": os.environ.get(STORAGE_VARIABLE) or tree.get("storage")}


def _events(folder: Path, storage: str | None) -> list[dict[str, Any]]:
    if storage is None:
        from lora_lab.study.file_log import FILE, REMEDY
        from lora_lab.study.lines import Lines

        return list(Lines(folder / FILE, durable=False, remedy=REMEDY, writes=False).read(0))
    from lora_lab.study.opening import open_log

    with contextlib.closing(open_log(storage, folder, execution_of(folder).get("study") or folder.name)) as events:
        return events.read(0)
