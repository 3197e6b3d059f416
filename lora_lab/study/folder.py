"""The sweep's folder: whose it is, who works in it, and the result of each run.

::

    sweep.json                 the sweep as a tree, and its key
    study.journal              Optuna's journal (unless the sweep has a storage of its own)
    runs/t0003-s1/result.json  the settled result of one run; there whole, or not at all
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import socket
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_lab.errors import CheckpointError, SpecError, SweepFolderError
from lora_lab.files import folder_errors, read_json, write_json
from lora_lab.spec import RunResult, Sweep

MINIMUM_FREE = 8 << 20
"""Bytes that must be free to begin: results and the journal of some thousand runs. Adapters come on top."""
SHOWN_DIFFERENCES = 8

log = logging.getLogger(__name__)


class SweepFolder:
    """A sweep's folder, claimed for this process until :meth:`release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Create and claim ``path``.

        Raises:
            SweepFolderError: it cannot be written, is full, or another process is working in it.
        """
        self.path = path
        with folder_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path).free
            if free < MINIMUM_FREE:
                raise SweepFolderError(
                    f"{path}: only {free / 2**20:.1f} MiB are free there. Free some space, or move the sweep with "
                    "sweep.dir=FOLDER."
                )
            self._claim = _claim(path / ".lock", path)
        self._release = weakref.finalize(self, os.close, self._claim)

    def release(self) -> None:
        """Let other processes work in the folder."""
        self._release()

    def stored_sweep(self) -> dict[str, Any] | None:
        """The tree in ``sweep.json``, ``key`` included; ``None`` in a new folder."""
        try:
            tree: dict[str, Any] = read_json(self.path / "sweep.json")
        except FileNotFoundError:
            return None
        return tree

    def store_sweep(self, sweep: Sweep) -> None:
        """Write ``sweep.json`` if it does not say the same already."""
        tree = {**sweep.to_tree(), "key": sweep.key}
        if self.stored_sweep() != tree:
            write_json(self.path / "sweep.json", tree)

    def result_path(self, run: str) -> Path:
        """Where the result of a run lies, or will."""
        return self.path / "runs" / run / "result.json"

    def has_result(self, run: str) -> bool:
        """True once the run is settled."""
        return self.result_path(run).exists()

    def store_result(self, result: RunResult) -> None:
        """Write a result, durably."""
        write_json(self.result_path(result.run), result.to_tree())

    def load_results(self) -> tuple[dict[str, RunResult], dict[str, CheckpointError]]:
        """The results by run, and what is wrong with those that cannot be read."""
        results: dict[str, RunResult] = {}
        torn: dict[str, CheckpointError] = {}
        for path in sorted((self.path / "runs").glob("*/result.json")):
            try:
                result = RunResult.from_tree(read_json(path))
                if result.run != path.parent.name:
                    raise ValueError(f"it is of run {result.run}")
                results[result.run] = result
            except CheckpointError as error:
                torn[path.parent.name] = error
            except (SpecError, KeyError, TypeError, ValueError) as error:
                torn[path.parent.name] = CheckpointError(
                    f"{path}: not the result of its run ({error}). Move it away to let its run be trained again."
                )
        return results, torn


def same_sweep(sweep: Sweep, stored: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with a sweep that is not the stored one.

    Raises:
        SweepFolderError: the keys differ; the paths that changed are shown with both values.
    """
    if stored.get("key") == sweep.key:
        return
    changes = differences({k: v for k, v in stored.items() if k != "key"}, sweep.to_tree())
    shown = [f"  {path}: {_short(before)} there, {_short(now)} now" for path, before, now in changes]
    if len(shown) > SHOWN_DIFFERENCES:
        shown = [*shown[:SHOWN_DIFFERENCES], f"  … and {len(shown) - SHOWN_DIFFERENCES} more"]
    if not shown:
        shown = ["  (the same settings, written by another version of lora-lab)"]
    raise SweepFolderError(
        "\n".join([f"{where} belongs to another sweep:", *shown])
        + "\nUse --fresh to begin a new sweep beside it, choose another name with sweep.name=NAME, "
        "or set these back to go on with it."
    )


MISSING = "(absent)"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The config paths at which two sweep trees differ, with both values.

    What may change between one start and the next (name, trials, repeats) is left out.
    """
    out = _differences("", before.get("base", {}), now.get("base", {}))
    for name in dict.fromkeys([*before, *now]):
        if name not in ("base", "name", "trials", "repeats"):
            out += _differences(f"sweep.{name}", before.get(name, MISSING), now.get(name, MISSING))
    return out


def _differences(path: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        inner = [(f"{path}.{name}".lstrip("."), name) for name in names]
        return [d for p, name in inner for d in _differences(p, before.get(name, MISSING), now.get(name, MISSING))]
    return [] if before == now else [(path, before, now)]


def _short(value: Any) -> str:
    text = value if value is MISSING else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _claim(path: Path, folder: Path) -> int:
    """Take the folder's lock, which the kernel gives back when the process ends, however it ends."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            log.warning("%s: this file system has no locks (%s); start the sweep only once at a time.", folder, error)
            return file
        holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
        os.close(file)
        raise SweepFolderError(
            f"{folder}: {holder} is working on this sweep. Wait for it, stop it, or begin another with --fresh."
        ) from error
    return file
