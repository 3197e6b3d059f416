"""A real sweep of the tiny model in MLflow, from the command to the answer of its best adapter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command import LORA_LAB, SMALL, environment
from mlflow import MlflowClient

import lora_lab as package

SPACE = "sweep.space={method.r: {choices: [2, 8]}, optimizer.lr: {choices: [0.001, 0.01]}}"


def lora_lab(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [LORA_LAB, *words], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a sweep of four runs has been trained and sent."""
    folder = tmp_path_factory.mktemp("tracked")
    said = lora_lab(folder, "sweep", "rank_alpha", *SMALL, SPACE, "sweep.repeats=1", "sweep.name=tracked")
    if "MLflow has not got" in said:  # on a machine this busy the minute it waits was over
        lora_lab(folder, "sync", "tracked")
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Any]:
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("lora-lab")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_every_run_says_where_it_trained_on_what_and_in_how_much_memory(place: Path, runs: dict[str, Any]) -> None:
    frame = package.load_results(place / "runs" / "tracked").set_index("run")
    assert sorted(runs) == sorted([*frame.index, "tracked"])
    children = [runs[name] for name in frame.index]
    assert len({run.data.tags["pack"] for run in children}) == 1 and {run.data.tags["lanes"] for run in children} == {
        "4"
    }
    assert len({run.inputs.dataset_inputs[0].dataset.digest for run in children}) == 1
    for run in children:
        assert run.data.tags["worker"].startswith(run.data.tags["host"] + ":")
        memory = {n.removeprefix("memory."): v for n, v in run.data.metrics.items() if n.startswith("memory.")}
        for part in ("weights", "adapters", "optimizer"):  # what is held for the whole run is planned to the byte
            assert memory[f"predicted.{part}_bytes"] == memory[f"measured.{part}_bytes"] > 0, part
        assert memory["measured.peak_bytes"] == run.data.metrics["peak_bytes"] > 0
        assert memory["predicted.peak_bytes"] > memory["predicted.weights_bytes"]
        assert run.data.metrics["flops"] > 0 and "exact_match_stderr" in run.data.metrics
        assert run.data.metrics["axis.eval_loss"] == run.data.metrics["eval_loss"]
        assert {name for name in run.data.params if name.startswith("axis.")} == {"axis.method.r", "axis.optimizer.lr"}


def test_tables_and_plots_are_on_the_parent(place: Path, runs: dict[str, Any]) -> None:
    client, parent = MlflowClient(f"sqlite:///{place}/mlflow.db"), runs["tracked"].info.run_id
    there = {item.path.removeprefix("report/") for item in client.list_artifacts(parent, "report")}
    assert there == {"report.html", "report.md", "table.csv", "runs.csv", "figures"}
    figures = [item.path for item in client.list_artifacts(parent, "report/figures")]
    assert any(name.endswith(".png") for name in figures) and any(name.endswith(".svg") for name in figures)
    assert "plotly" in (place / "runs" / "tracked" / "report" / "report.html").read_text().lower()


def test_mlflow_models_finds_the_best_adapter_and_it_answers(place: Path, runs: dict[str, Any]) -> None:
    asked = {"dataframe_records": [{"instruction": "Add the numbers.", "input": "1 + 2"}, {"instruction": "Say no."}]}
    (place / "questions.json").write_text(json.dumps(asked))
    words = ("-m", "models:/tracked@best", "--env-manager", "local", "-i", "questions.json", "-o", "answers.json")
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "models", "predict", *words],
        cwd=place,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((place / "answers.json").read_text())["predictions"]
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)

    frame = package.load_results(place / "runs" / "tracked")
    best = frame.loc[frame["eval_loss"].idxmin(), "run"]
    found = MlflowClient(f"sqlite:///{place}/mlflow.db").get_model_version_by_alias("tracked", "best")
    assert found.run_id == runs[str(best)].info.run_id


def test_the_report_reads_from_the_store(place: Path, tmp_path: Path) -> None:
    words = ("tracked", "--store", f"sqlite:///{place}/mlflow.db")
    told = lora_lab(tmp_path, "report", *words)
    assert "4 of 4 runs settled" in told and "Best:" in told
    rows = lora_lab(tmp_path, "report", *words, "--csv")
    (tmp_path / "rows.csv").write_text(rows)
    there = pd.read_csv(tmp_path / "rows.csv").set_index("run")["eval_loss"]
    here = package.load_results(place / "runs" / "tracked").set_index("run")["eval_loss"]
    pd.testing.assert_series_equal(there, here, check_index_type=False)


def test_ui_prints_the_links_to_the_sweep(place: Path, runs: dict[str, Any]) -> None:
    said = lora_lab(place, "ui", "tracked", "--print")
    (compare,) = re.findall(r"http://127\.0\.0\.1:5000/#/compare-runs\S+", said)
    assert all(run.info.run_id in compare for name, run in runs.items() if name != "tracked")


def test_sync_brings_it_to_another_store_too(place: Path) -> None:
    words = ("sync", "tracked", "--store", "sqlite:///other.db", "--experiment", "elsewhere")
    assert "everything is in sqlite:///" in lora_lab(place, *words)
    client = MlflowClient(f"sqlite:///{place}/other.db")
    experiment = client.get_experiment_by_name("elsewhere")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 5
    assert "everything is in" in lora_lab(place, "sync", "tracked"), "its own store lacks nothing"
