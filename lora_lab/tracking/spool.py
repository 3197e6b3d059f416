"""The spool: what happens to a run, as JSON lines beside its result.

``runs/<id>/metrics.jsonl`` holds one object a line, with a sequence number ``n`` that never falls, the
``time`` (seconds since 1970), a ``kind``, and

=============  =============================================================================
``started``    ``total_steps``, ``first_step``, ``spec`` (the run's spec as a tree)
``step``       the fields of :class:`~lora_lab.spec.StepMetrics`
``evaluation`` the fields of :class:`~lora_lab.spec.EvalMetrics`
``ended``      ``outcome``, ``message``
=============  =============================================================================

Within a file, the steps of a kind only rise: when a run goes on from a checkpoint, the lines beyond it are
cut, for those steps are trained (and written) again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lora_lab.errors import LoraLabError
from lora_lab.files import write_bytes
from lora_lab.spec import EvalMetrics, RunResult, RunSpec, StepMetrics, to_tree

FILE = "metrics.jsonl"

log = logging.getLogger(__name__)


def spool_path(folder: Path, run: str) -> Path:
    """Where the metrics of a run lie, in the sweep's ``folder``."""
    return folder / "runs" / run / FILE


def read_spool(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines from byte ``offset`` on, and the offset after them.

    A last line that is still being written is left for the next call; one that a crash spoilt is left out.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    records = []
    for line in whole.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "kind" in record:
            records.append(record)
    return records, offset + len(whole)


@dataclass
class _File:
    """An open spool: descriptor, size up to the last whole line, next number, last step of each kind."""

    handle: int
    size: int
    number: int
    last: dict[str, int] = field(default_factory=dict)


class Spool:
    """A :class:`~lora_lab.spec.Recorder` that appends to ``runs/<id>/metrics.jsonl`` of a sweep's folder.

    Never raises for reasons of its own: where the disk is full, lines are lost, counted in :attr:`lost` and
    said once in the log; training goes on. Lines are handed to the operating system at once but not fsynced.
    """

    def __init__(self, folder: Path, run_folder: Callable[[str], Path] | None = None) -> None:
        """``folder`` is the sweep's; it need not exist yet. ``run_folder`` puts runs elsewhere than under ``runs/``."""
        self.folder = folder
        self._path = partial(spool_path, folder) if run_folder is None else lambda run: run_folder(run) / FILE
        self.lost: dict[str, int] = {}
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        """Open the run's file; cut what lies beyond ``first_step``, which will be trained again."""

        def keep(record: dict[str, Any]) -> bool:
            return first_step > 0 and record.get("step", 0) <= first_step

        with self._lock:
            self._close(run)
            try:
                self._open(run, keep)
            except (OSError, LoraLabError) as error:
                self._lose(run, error)
            fields = {"total_steps": total_steps, "first_step": first_step, "spec": to_tree(spec)}
            self._append(run, "started", fields)

    def step(self, run: str, metrics: StepMetrics) -> None:
        """Append a step."""
        with self._lock:
            self._append(run, "step", vars(metrics))

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        """Append an evaluation."""
        with self._lock:
            self._append(run, "evaluation", to_tree(metrics))

    def ended(self, result: RunResult) -> None:
        """Append the outcome and close the run's file."""
        with self._lock:
            self._append(result.run, "ended", {"outcome": str(result.outcome), "message": result.message})
            self._close(result.run)

    def close(self) -> None:
        """Close all files. A run that is recorded later opens its own again."""
        with self._lock:
            for run in list(self._files):
                self._close(run)

    def _append(self, run: str, kind: str, fields: dict[str, Any]) -> None:
        try:
            file = self._files.get(run) or self._open(run, lambda record: True)
            step = fields.get("step")
            if step is not None and step <= file.last.get(kind, -1):
                self._close(run)
                file = self._open(run, lambda record: record["kind"] != kind or record.get("step", 0) < step)
            record = {"n": file.number, "time": round(time.time(), 3), "kind": kind, **fields}
            self._write(file, json.dumps(record).encode() + b"\n")
            file.number += 1
            if step is not None:
                file.last[kind] = step
        except (OSError, LoraLabError) as error:
            self._lose(run, error)

    def _write(self, file: _File, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(file.handle, data[written:])
        except OSError:
            os.ftruncate(file.handle, file.size)
            raise
        file.size += written

    def _open(self, run: str, keep: Any) -> _File:
        """Open a run's file with only the lines to keep; numbers go on after the highest there was."""
        path = self._path(run)
        try:
            records, _ = read_spool(path)
            size = path.stat().st_size
        except FileNotFoundError:
            records, size = [], 0
        kept = [record for record in records if keep(record)]
        data = b"".join(json.dumps(record).encode() + b"\n" for record in kept)
        if len(data) != size:
            write_bytes(path, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        file = _File(handle, len(data), 1 + max((record.get("n", -1) for record in records), default=-1))
        for record in kept:
            if "step" in record:
                file.last[record["kind"]] = max(record["step"], file.last.get(record["kind"], -1))
        self._files[run] = file
        return file

    def _close(self, run: str) -> None:
        file = self._files.pop(run, None)
        if file is not None:
            os.close(file.handle)

    def _lose(self, run: str, error: Exception) -> None:
        if not self.lost:
            log.warning("metrics are being lost, training goes on: %s", error)
        self.lost[run] = self.lost.get(run, 0) + 1
