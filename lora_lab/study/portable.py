"""A study as one file: its log, which holds the sweep and every result. JSON, gzipped where the name ends in .gz."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from lora_lab.errors import LoraLabError, StorageError, SweepFolderError
from lora_lab.files import folder_errors, write_bytes
from lora_lab.study.folder import SweepFolder
from lora_lab.study.log import Event, Unreachable
from lora_lab.study.look import execution_of
from lora_lab.study.opening import open_log
from lora_lab.study.state import State
from lora_lab.study.storage import gone

FORMAT = "lora-lab study"
VERSION = 1


def export_study(folder: Path, file: Path) -> int:
    """Write the study in ``folder`` to ``file``; returns how many results are in it. It may be worked on meanwhile.

    Adapters and metrics are not in it.

    Raises:
        SweepFolderError: there is no study, or ``file`` cannot be written.
        StorageError: its storage cannot be reached.
    """
    execution = execution_of(folder)
    events = _read(execution["storage"], folder, execution.get("study") or "")
    state = _replayed(events, str(folder))
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "sweep": state.sweep,
        "results": [result.to_tree() for result in state.results.values()],
        "log": events,
    }
    data = json.dumps(tree, separators=(",", ":")).encode()
    write_bytes(file, gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
    return len(state.results)


def import_study(file: Path, folder: Path) -> int:
    """Make the study of ``file`` again in the new folder ``folder``; returns how many results it has.

    What was in training when it was exported is in the queue.

    Raises:
        SweepFolderError: the file is not one of these, or ``folder`` holds a sweep already.
    """
    if (folder / "sweep.json").exists() or (folder / "study.log").exists():
        raise SweepFolderError(f"{folder}: there is a sweep already. Choose another place with --folder FOLDER.")
    try:
        data = file.read_bytes()
        tree: dict[str, Any] = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        if tree["format"] != FORMAT or tree["version"] > VERSION:
            raise ValueError(f"format {tree['format']!r} version {tree['version']}")
        events: list[Event] = tree["log"]
    except FileNotFoundError as error:
        raise SweepFolderError(f"{file}: no such file.") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error) as error:
        raise SweepFolderError(
            f"{file}: not a study that `lora-lab export` wrote, or a damaged one ({error})."
        ) from error
    state = _replayed(events, str(file))
    with folder_errors(folder):
        made = SweepFolder(folder)
    log = open_log(None, folder, "")
    with log.exclusive() as append:
        append([*events, *({"op": "leave", "worker": worker} for worker in state.workers)])
    log.close()
    for result in state.results.values():
        made.store_result(result)
    assert state.sweep is not None
    write_bytes(folder / "sweep.json", json.dumps(state.sweep, indent=1).encode())
    return len(state.results)


def _read(storage: str | None, folder: Path, name: str) -> list[Event]:
    if storage is None and not (folder / "study.log").exists():
        raise SweepFolderError(f"{folder}: no study there. Begin it with `lora-lab sweep`.")
    log = open_log(storage, folder, name)
    try:
        return log.read(0)
    except Unreachable as error:
        raise gone(error.url, error.cause) from error
    finally:
        log.close()


def _replayed(events: list[Event], where: str) -> State:
    state = State()
    try:
        for event in events:
            state.take(event)
    except LoraLabError as error:
        raise StorageError(f"{where}: {error}") from error
    if state.sweep is None:
        raise SweepFolderError(f"{where}: no sweep is in it.")
    return state
