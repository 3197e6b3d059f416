"""A sweep on servers: the study in PostgreSQL, metrics in an MLflow server over it, which is restarted in the middle;
and passwords that nobody sees."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from postgres import Postgres, server
from processes import start, until
from slurm_cluster import free_ports
from tiny import SWEEP, results

FOLDER = Path("runs/rank_alpha")
SECRET = "hunter2-s3cret"
WORDS = tuple(word.replace("lease_seconds=2", "lease_seconds=60") for word in SWEEP if word != "tracking=none")


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    yield from server()


@pytest.fixture
def mlflow_port(own_server: Postgres, tmp_path: Path) -> Iterator[int]:
    """An MLflow server over PostgreSQL."""
    (port,) = free_ports(1)
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", own_server.database("mlflow"), "--artifacts-destination", f"{tmp_path}/artifacts"]
    with (tmp_path / "mlflow.txt").open("wb") as output:
        running = subprocess.Popen([sys.executable, "-m", "mlflow", *words], stdout=output, stderr=output, cwd=tmp_path)
    try:
        until(lambda: answers(port), "the MLflow server to answer", 400)
        yield port
    finally:
        for process in [*psutil.Process(running.pid).children(recursive=True), running]:
            process.terminate()
        running.wait(30)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_everything_arrives_though_the_database_is_restarted_and_no_password_is_shown(
    own_server: Postgres, mlflow_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDY_URL", own_server.database("study").replace("postgres@", f"postgres:{SECRET}@"))
    monkeypatch.setenv("MLFLOW_URI", f"http://somebody:{SECRET}@127.0.0.1:{mlflow_port}")
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
    _, there = read_store("rank_alpha", f"http://127.0.0.1:{mlflow_port}")
    assert [tree["run"] for tree in there] == list(here.index) and len(there) == 6
    for name in ("key", "outcome", "steps"):
        assert [tree[name] for tree in there] == list(here[name]), name
    np.testing.assert_allclose([tree["eval_loss"] for tree in there], here["eval_loss"], rtol=1e-12)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
