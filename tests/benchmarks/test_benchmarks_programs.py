"""The programs of benchmarks/ run on the tiny model and keep a result that names its machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from command import environment

import lora_lab

BENCHMARKS = Path(lora_lab.__file__).parent.parent / "benchmarks"


def run(program: str, results: Path, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(BENCHMARKS / program), "--model", "model=tiny", "--results", str(results), *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    entries: list[dict[str, Any]] = json.loads(results.read_text())
    for entry in entries:
        facts = entry["machine"]
        assert facts["packages"]["torch"]
        assert facts["cores"] >= facts["threads"] >= 1
        assert facts["command"].startswith("python ")
    return entries


def test_sweep_throughput_compares_methods(tmp_path: Path) -> None:
    words = ("--quick", "--threads", "1", "--shapes", "1x16", "--methods", "trainers", "pack")
    steps, whole = run("sweep_throughput.py", tmp_path / "results.json", *words)
    rows = {row["method"]: row for row in steps["rows"]}
    assert list(rows) == ["trainers", "pack 3"]
    assert rows["trainers"]["ratio_to_peer"]["median"] == 1.0
    for row in rows.values():
        assert row["flops_per_second"]["median"] > 0
        assert row["peak_bytes"] > 1e8
        assert len(row["losses"]) == row["runs"] == 3
    assert steps["losses_agree"]
    assert set(whole["seconds"]) == {"trainers", "lora-lab sweep"}
    losses = whole["mean_eval_loss"].values()
    assert max(losses) - min(losses) < 0.1


def test_memory_curve_measures_every_number_of_lanes(tmp_path: Path) -> None:
    (entry,) = run("memory_curve.py", tmp_path / "results.json", "--lanes", "2", "--steps", "1", "--threads", "1")
    (row,) = entry["rows"]
    assert row["lanes"] == 2
    assert row["peak_bytes"] > row["loaded_bytes"] > 0
    assert row["step_seconds"] > 0
