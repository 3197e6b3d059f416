"""The programs of benchmarks/ run on the tiny model and keep a result that names its machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import memory_curve
import orchestration
import pytest
import reporting
import shared_weights
import step_profile
import sweep_throughput
import torch

from lora_lab.models import load
from lora_lab.packing import native
from lora_lab.spec import ModelSpec, pairs

kernel = native.call


def run(program: ModuleType, monkeypatch: pytest.MonkeyPatch, results: Path, *words: str) -> list[dict[str, Any]]:
    """What the program keeps; its methods run in processes of their own, as always."""
    command = [f"{program.__name__}.py", "--model", "model=tiny", "--results", str(results), "--threads", "1", *words]
    monkeypatch.setattr(sys, "argv", command)
    program.main()
    entries: list[dict[str, Any]] = json.loads(results.read_text())
    for entry in entries:
        facts = entry["machine"]
        assert facts["packages"]["torch"]
        assert facts["threads"] == 1 <= facts["cores"]
        assert facts["command"].startswith(f"python {program.__name__}.py --model")
    return entries


def test_sweep_throughput_compares_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--quick", "--shapes", "1x16", "--methods", "trainers", "pack", "packs")
    steps, whole = run(sweep_throughput, monkeypatch, tmp_path / "results.json", *words)
    rows = {row["method"]: row for row in steps["rows"]}
    assert list(rows) == ["trainers", "pack 3", "packs 3"]
    assert rows["trainers"]["ratio_to_peer"]["median"] == 1.0
    for row in rows.values():
        assert row["flops_per_second"]["median"] > 0
        assert row["peak_bytes"] > 1e8
        assert len(row["losses"]) == row["runs"] == 3
    assert steps["losses_agree"]
    assert set(whole["seconds"]) == {"trainers", "lora-lab sweep", "lora-lab sweep launcher.workers=2"}
    losses = whole["mean_eval_loss"].values()
    assert max(losses) - min(losses) < 0.1


def test_memory_curve_measures_every_number_of_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = run(memory_curve, monkeypatch, tmp_path / "results.json", "--lanes", "2", "--steps", "1")
    (row,) = entry["rows"]
    assert row["lanes"] == 2
    assert row["peak_bytes"] > row["loaded_bytes"] > 0
    assert row["step_seconds"] > 0


def test_step_profile_has_a_part_for_all_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, words = torch.get_num_threads(), ("--shape", "2x16", "--lanes", "3", "--steps", "2")
    try:
        (entry,) = run(step_profile, monkeypatch, tmp_path / "results.json", *words)
    finally:
        torch.set_num_threads(threads)
    assert sum(entry["parts"].values()) == pytest.approx(1) and min(entry["parts"].values()) > 0
    assert {step_profile.BASE, step_profile.UPDATE, step_profile.REST} < set(entry["parts"])
    assert 0 < entry["base_products_share_of_flops"] < 1
    assert native.call is kernel, "what was timed is as it was"


def test_orchestration_measures_a_run_without_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--storages", "journal,sqlite", "--trials", "10", "--workers", "1", "2", "--seconds", "0.5")
    results = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["orchestration.py", *words, "--results", str(results)])
    orchestration.main()
    *parts, status = json.loads(results.read_text())
    assert status["machine"]["disk_ms"] > 0 and status["status_s"]["10"] > 0
    found = {
        (part["storage"], name): part[name] for part in parts for name in ("overhead", "throughput") if name in part
    }
    for storage in ("journal", "sqlite"):
        assert found[storage, "overhead"]["10"]["median_ms"] > 0
        for settled in found[storage, "throughput"].values():
            assert settled["runs"] > 0 and settled["lost"] == settled["doubled"] == settled["crashed"] == 0


def test_weights_that_processes_share_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    fields = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 320}
    config = pairs({"model_type": "llama", "num_attention_heads": 4} | fields)
    base = load(ModelSpec("random", source="random", dtype="float32", config=config))
    base.model.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    words = ["--processes", "2", "--dtype", "float32", "--model", "model=hf", f"model.path={tmp_path / 'model'}"]
    (entry,) = run(shared_weights, monkeypatch, tmp_path / "results.json", *words)
    own, shared = (row["mb"] for row in entry["rows"])
    assert shared < own - 80, "the model has 134 MB, and the second process has no copy of it"


def test_reports_of_made_up_runs_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--runs", "40", "--rounds", "1", "--results", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", ["reporting.py", *words])
    reporting.main()
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert set(row["seconds"]) == {"screen", "page", "csv"} and min(row["seconds"].values()) > 0
    assert 1 < row["page_mb"] < 5
