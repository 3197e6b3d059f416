"""A sweep on servers: the study in PostgreSQL, metrics in an MLflow server over it, which is restarted in the middle;
and passwords that nobody sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow_server import MlflowServer
from postgres import Postgres, server
from processes import start, until
from tiny import SWEEP, results

FOLDER = Path("runs/rank_alpha")
SECRET = "hunter2-s3cret"
WORDS = tuple(word.replace("lease_seconds=2", "lease_seconds=60") for word in SWEEP if word != "tracking=none")


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    yield from server()


@pytest.fixture
def mlflow_server(own_server: Postgres, tmp_path: Path) -> Iterator[MlflowServer]:
    """Over PostgreSQL."""
    running = MlflowServer(tmp_path / "mlflow", own_server.database("mlflow"))
    running.start()
    yield running
    running.kill()


def test_everything_arrives_though_the_database_is_restarted_and_no_password_is_shown(
    own_server: Postgres, mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDY_URL", own_server.database("study").replace("postgres@", f"postgres:{SECRET}@"))
    monkeypatch.setenv("MLFLOW_URI", mlflow_server.uri.replace("//", f"//somebody:{SECRET}@"))
    settings = ("sweep.storage=${oc.env:STUDY_URL}", "tracking.uri=${oc.env:MLFLOW_URI}", "launcher.workers=2")
    sweep = start(tmp_path, *WORDS, *settings, "pack.max_lanes=1", "budget.steps=150")
    folder = tmp_path / FOLDER
    until(lambda: len(list(folder.glob("runs/*/metrics.jsonl"))) >= 2, "two to train", 400, sweep.said)
    arguments = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert any("lora_lab.cli.main worker" in words for words in arguments)
    assert [words for words in arguments if SECRET in words] == []
    until(lambda: any(folder.glob("runs/*/result.json")), "a result", 400)
    own_server.stop()  # immediate: as a crash
    own_server.start()
    assert sweep.wait(400) == 0, sweep.said()

    again = start(tmp_path, *WORDS, *settings, "pack.max_lanes=1", "budget.steps=150")  # sends what is still owed
    assert again.wait(400) == 0, again.said()
    from lora_lab.tracking import read_store

    here = results(folder)
    _, there = read_store("rank_alpha", mlflow_server.uri)
    assert [tree["run"] for tree in there] == list(here.index) and len(there) == 6
    for name in ("key", "outcome", "steps"):
        assert [tree[name] for tree in there] == list(here[name]), name
    np.testing.assert_allclose([tree["eval_loss"] for tree in there], here["eval_loss"], rtol=1e-12)

    texts = {path: path.read_bytes().splitlines() for path in tmp_path.rglob("*") if path.is_file()}
    assert [(path, line) for path, lines in texts.items() for line in lines if SECRET.encode() in line] == []
