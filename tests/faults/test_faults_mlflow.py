"""An MLflow server that is killed in the middle of a sweep and comes back: training goes on, and nothing is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from processes import Sleep, start, until
from tiny import SWEEP, results

from lora_lab.tracking.experiment import connect
from lora_lab.tracking.spool import read_spool

FOLDER = Path("runs/rank_alpha")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    running = MlflowServer(tmp_path / "server")
    running.start()
    yield running
    running.kill()


def words(uri: str) -> tuple[str, ...]:
    return (*(word for word in SWEEP if word != "tracking=none"), f"tracking.uri={uri}")


def runs_of(store: str) -> dict[str, Any]:
    client = connect(store)
    experiment = client.get_experiment_by_name("lora-lab")
    if experiment is None:
        return {}
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def whole(folder: Path, store: str) -> None:
    """Every step and evaluation of every spool is in the store, once; every run is settled and has its adapter."""
    client, runs = connect(store), runs_of(store)
    found = results(folder)
    assert sorted(runs) == sorted([*found.index, folder.name])
    for name in found.index:
        run = runs[name]
        lines, _ = read_spool(folder / "runs" / name / "metrics.jsonl")
        steps = {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}
        evaluations = {line["step"]: line["loss"] for line in lines if line["kind"] == "evaluation"}
        for metric, wanted in (("train_loss", steps), ("eval_loss", evaluations)):
            sent = client.get_metric_history(run.info.run_id, metric)
            assert [(m.step, m.value) for m in sent] == sorted(wanted.items()), (name, metric)
        assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "COMPLETED")
        (model,) = run.outputs.model_outputs
        files = [item.path for item in client.list_logged_model_artifacts(model.model_id, "data/adapter")]
        assert "data/adapter/adapter_model.safetensors" in files
    parent = runs[folder.name].info
    assert parent.status == "FINISHED"
    assert "report/report.html" in [item.path for item in client.list_artifacts(parent.run_id, "report")]


def settled(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("runs/*/result.json")}


def test_killed_in_the_middle_of_a_sweep_and_restarted(server: MlflowServer, tmp_path: Path) -> None:
    """The sweep stands still after its first and after its fourth run, however fast it or MLflow is."""
    sleep = Sleep("lora_lab.tracking.spool:Spool.ended", (1, 4))
    options = "pack.max_lanes=2", "launcher.lease_seconds=600"
    sweep = start(tmp_path, *words(server.uri), *options, dies=sleep)
    folder = tmp_path / FOLDER
    until(sweep.asleep, "the first run", 120)
    until(lambda: settled(folder) & set(runs_of(server.store)), "the first run in MLflow", 120)
    server.kill()
    before = settled(folder)
    sweep.wake()
    until(lambda: settled(folder) > before and sweep.asleep(), "training to go on without MLflow", 120)
    assert len(settled(folder)) < 6, "the sweep is not over"
    server.start()
    until(lambda: settled(folder) <= set(runs_of(server.store)), "MLflow to be caught up with", 120)
    sweep.wake()
    assert sweep.wait(240) == 0, sweep.said()
    assert "MLflow has not got" not in sweep.said()
    whole(folder, server.uri)


def test_away_from_beginning_to_end_and_caught_up_with_by_sync(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / "server")
    server.start()
    try:
        sweep = start(tmp_path, *words(server.uri))
        until((tmp_path / FOLDER / "config.yaml").exists, "the check of the store to be past")
        server.kill()
        assert sweep.wait(240) == 0, sweep.said()
        told = sweep.said() + (tmp_path / FOLDER / "logs" / "tracking.log").read_text()
        assert "MLflow has not got 6 runs yet" in told and "lora-lab sync" in told, told
        refused = start(tmp_path, "sync", "rank_alpha")
        assert refused.wait(120) == 2 and "does not answer" in refused.said(), refused.said()
        server.start()
        done = start(tmp_path, "sync", "rank_alpha")
        assert done.wait(120) == 0 and "everything is in" in done.said(), done.said()
        whole(tmp_path / FOLDER, server.uri)
        before = json.dumps([run.to_dictionary() for run in runs_of(server.store).values()], default=str)
        again = start(tmp_path, "sync", "rank_alpha")
        assert again.wait(120) == 0, again.said()
        assert json.dumps([run.to_dictionary() for run in runs_of(server.store).values()], default=str) == before
    finally:
        server.kill()
