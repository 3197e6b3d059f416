"""A sweep of 1,000 runs in MLflow's own UI, in a real browser: the table, the compare page, parallel coordinates."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Page
from mlflow_server import MlflowServer

from lora_lab.cli.main import main
from lora_lab.files import write_json
from lora_lab.spec import ModelSpec, Outcome, RunResult, RunSpec, Space, Strategy, Sweep, pairs, run_id
from lora_lab.tracking.uploader import Uploader

RUNS = 1000
SENT = 20
"""Runs that the uploader sends; the others are copies in the database, each at a point of its own."""
SWEPT = ("axis.method.dropout", "axis.method.r", "axis.optimizer.lr")
PLOT = ".pcp-plot .parcoords"


@pytest.fixture(scope="module")
def shown(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server's UI, and the working folder of the sweep that is in it."""
    folder = tmp_path_factory.mktemp("ui")
    server = MlflowServer(folder / "server")
    sweep = fabricated(folder / "runs" / "many")
    uploader = Uploader(folder / "runs" / "many", sweep, server.store, "lora-lab")
    uploader.send()
    uploader.finish()
    assert not uploader.unsent() and not uploader.refused
    record = folder / "runs" / "many" / "tracking.json"
    state = json.loads(record.read_text())
    (store,) = state["stores"].values()
    store["uri"] = server.uri  # a user's sweep is sent to the server, not into the database behind it
    multiply(Path(server.store.removeprefix("sqlite:///")), store["runs"])
    write_json(record, state)
    (folder / "runs" / "many" / "config.yaml").write_text(f"tracking: {{uri: '{server.uri}'}}\n")
    server.start()
    yield server.uri, folder
    server.kill()


def fabricated(folder: Path) -> Sweep:
    """A random sweep over three numbers with one seed, as its folder is when all runs are settled."""
    base = RunSpec(model=ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})))
    space = Space.from_tree(
        {
            "method.r": {"int": {"low": 1, "high": 64, "log": True}},
            "optimizer.lr": {"float": {"low": 1e-4, "high": 1e-2, "log": True}},
            "method.dropout": {"float": {"low": 0.0, "high": 0.3}},
        }
    )
    sweep = Sweep("many", base, space, sampler=Strategy("random"), trials=RUNS)
    write_json(folder / "sweep.json", sweep.to_tree() | {"key": sweep.key})
    for trial in range(SENT):
        point, loss = drawn(trial)
        result = RunResult(
            run_id(trial, 0), trial, 0, f"{trial:064x}", Outcome.COMPLETED, pairs(point), eval_loss=loss,
            best_eval_loss=loss, base_eval_loss=2.5, train_loss=loss, steps=20, tokens=1000, seconds=1.0,
            started=1.7e9 + trial, ended=1.7e9 + trial + 60,
        )  # fmt: skip
        write_json(folder / "runs" / result.run / "result.json", result.to_tree(), durable=False)
    return sweep


def drawn(trial: int) -> tuple[dict[str, float], float]:
    """A trial's point and its loss."""
    dice = random.Random(trial)
    rank = round(2 ** dice.uniform(0, 6))
    point = {"method.r": rank, "optimizer.lr": 10 ** dice.uniform(-4, -2), "method.dropout": dice.uniform(0, 0.3)}
    return point, 2 - 0.1 * rank**0.5 + dice.uniform(0, 0.05)


def multiply(database: Path, runs: dict[str, str]) -> None:
    """Add the runs beyond those that were sent, as rows like theirs; ``runs`` gets their ids by name."""
    with sqlite3.connect(database) as store:
        columns = {
            table: [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
            for table in ("runs", "params", "tags", "metrics", "latest_metrics")
        }
        for trial in range(SENT, RUNS):
            name, copied, made = run_id(trial, 0), runs[run_id(trial % SENT, 0)], f"{trial:032x}"
            for table, names in columns.items():
                found = ", ".join("?" if column == "run_uuid" else column for column in names)
                store.execute(f"INSERT INTO {table} SELECT {found} FROM {table} WHERE run_uuid = ?", (made, copied))
            store.execute("UPDATE runs SET name = ? WHERE run_uuid = ?", (name, made))
            tags = {"mlflow.runName": name, "lora_lab.run": name, "trial": str(trial)}
            point, loss = drawn(trial)
            params = {f"{prefix}{path}": f"{value:.6g}" for path, value in point.items() for prefix in ("", "axis.")}
            for table, values in (("tags", tags), ("params", params)):
                for key, value in values.items():
                    store.execute(f"UPDATE {table} SET value = ? WHERE run_uuid = ? AND key = ?", (value, made, key))
            for table in ("metrics", "latest_metrics"):
                of = "run_uuid = ? AND key IN ('eval_loss', 'axis.eval_loss')"
                store.execute(f"UPDATE {table} SET value = ? WHERE {of}", (loss, made))
            runs[name] = made


@pytest.fixture
def links(
    shown: tuple[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """What ``lora-lab ui`` prints: the table's address and the compare page's."""
    monkeypatch.chdir(shown[1])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["ui", "many"]) == 0
    table, compare = re.findall(r"http://\S+/#/\S+", capsys.readouterr().out)
    assert table.startswith(shown[0]) and compare.startswith(shown[0])
    return table, compare


@pytest.fixture
def page(browser: Browser) -> Page:
    return browser.page(1800, 1100)


def test_the_table_shows_its_runs(links: tuple[str, str], page: Page) -> None:
    page.open(links[0])
    page.until("document.querySelectorAll('[role=row]').length > 20")
    page.picture("mlflow_table.png")
    assert "many" in page.value("document.body.innerText")


def test_the_compare_page_begins_with_the_swept_axes(links: tuple[str, str], page: Page) -> None:
    page.open(links[1])
    page.until(f"document.querySelector('{PLOT}') !== null")
    page.picture("mlflow_compare.png")
    titles = page.value(f"[...document.querySelectorAll('{PLOT} .axis-title')].map((t) => t.textContent)")
    assert titles == [*SWEPT, "axis.eval_loss"]
