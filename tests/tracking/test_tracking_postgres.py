"""MLflow's store in a PostgreSQL database: the same is there as in SQLite, and it reads back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
from postgres import Postgres

import lora_lab
from lora_lab.files import write_json
from lora_lab.spec import TrackingSpec
from lora_lab.tracking import check, open_tracker
from lora_lab.tracking.experiment import connect


def test_a_sweep_in_postgresql(training, execution, postgres: Postgres, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow puts the artifacts of a database store there
    url = postgres.database("mlflow").replace("postgres@", "postgres:s3cret@")  # it trusts everybody
    spec = TrackingSpec(uri=url, experiment="lab")
    check(spec)
    training.all()
    write_json(training.folder / "sweep.json", training.sweep.to_tree() | {"key": training.sweep.key})
    for _ in range(2):
        tracker = open_tracker(training.sweep, dataclasses.replace(execution, tracking=spec))
        lag = tracker.close(120, best="t0001-s0")
        assert not lag, lag
    client = connect(url)
    runs = client.search_runs([client.get_experiment_by_name("lab").experiment_id])
    assert len(runs) == 9 and {run.info.status for run in runs} == {"FINISHED"}
    child = next(run for run in runs if run.info.run_name == "t0001-s0")
    steps = [m.step for m in client.get_metric_history(child.info.run_id, "train_loss")]
    assert steps == [1, 2, 3, 4]
    assert client.get_model_version_by_alias(training.sweep.name, "best").run_id == child.info.run_id
    here, there = lora_lab.load_results(training.folder), lora_lab.load_results(training.sweep.name, store=url)
    same = [name for name in here.columns if name not in ("adapter", "message")]
    pd.testing.assert_frame_equal(there[same], here[same], check_dtype=False)
    kept = "".join(path.read_text() for path in training.folder.glob("*.json"))
    assert "postgresql" in kept and "s3cret" not in kept
