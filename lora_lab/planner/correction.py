"""What runs really took, beside what was predicted: one file a sweep, and what it teaches about the next prediction.

A prediction counts live tensors. An allocator keeps more than is alive, and kernels work in memory of their own; how
much depends on the device. So a worker notes predicted and measured peaks, and later plans of the same sweep on the
same device are multiplied with what it has learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_lab.files import read_json, write_json

FILE = "memory.json"
ENOUGH = 3
"""Measurements before which nothing is corrected."""
KEPT = 200
"""Measurements that are kept a device; the oldest go first."""


def note(folder: Path, device: str, run: str, predicted: int, measured: int, lanes: int = 1) -> None:
    """Keep that a pack of ``lanes`` lanes, ``run`` among them, took ``measured`` bytes at its peak on ``device``.

    Both are in bytes, and of training alone: without what the process took before its base model was loaded. A run
    that is noted again (it went on in another process) keeps its largest peak. One process writes at a time.

    Raises:
        CheckpointError: the file is torn.
        SweepFolderError: it cannot be written.
    """
    if predicted <= 0 or measured <= 0:
        return
    tree = _read(folder)
    rows = {row["run"]: row for row in tree.get(device, [])}
    before = rows.pop(run, None)
    row = {"run": run, "lanes": lanes, "predicted": predicted, "measured": measured}
    rows[run] = before if before is not None and before["measured"] > measured else row
    tree[device] = list(rows.values())[-KEPT:]
    write_json(folder / FILE, tree)


def correction(folder: Path, device: str) -> float:
    """By what predictions for ``device`` are to be multiplied: 1 until enough is known, never below 1.

    The upper quartile of measured over predicted: three of four runs took no more.
    """
    ratios = sorted(row["measured"] / row["predicted"] for row in _read(folder).get(device, []))
    return max(1.0, ratios[(3 * len(ratios)) // 4]) if len(ratios) >= ENOUGH else 1.0


def measurements(folder: Path) -> list[dict[str, Any]]:
    """Every measurement of a sweep: ``device``, ``run``, ``lanes``, ``predicted`` and ``measured`` bytes."""
    return [{"device": device} | row for device, rows in _read(folder).items() for row in rows]


def _read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    path = folder / FILE
    tree: dict[str, list[dict[str, Any]]] = read_json(path) if path.exists() else {}
    return tree
