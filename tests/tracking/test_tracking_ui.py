"""A sweep of 1,000 runs in MLflow's own UI, in a real browser: the table, the compare page, parallel coordinates."""

from __future__ import annotations

import contextlib
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import Browser, Page
from mlflow_server import MlflowServer

from lora_lab.cli.main import main
from lora_lab.files import write_json
from lora_lab.spec import (
    ModelSpec,
    Outcome,
    RunResult,
    RunSpec,
    Space,
    StepMetrics,
    Strategy,
    Sweep,
    pairs,
    run_id,
    thaw,
)
from lora_lab.tracking import Spool
from lora_lab.tracking.record import axis_metrics, axis_params, final_metrics, run_params
from lora_lab.tracking.uploader import Uploader

RUNS = 1000
SENT = 20
"""Runs that the uploader sends, at some 80 ms each; the others are rows like theirs in the database."""
STARTED = 1.7e9
STEPS = 20
AXES = ["axis.method.dropout", "axis.method.r", "axis.optimizer.lr"]
PLOT = "[...document.querySelectorAll('.parcoords .axis-title')].map((title) => title.textContent)"
"""What the axes of the parallel coordinates are called."""


@dataclass(frozen=True)
class Shown:
    """A sweep of which MLflow's server has everything, and the working folder it was started in."""

    sweep: Sweep
    folder: Path
    uri: str
    runs: dict[str, str]
    """MLflow's ids by name."""


@pytest.fixture(scope="module")
def shown(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("ui")
    server = MlflowServer(folder / "server")
    made = made_in(folder, server.store, server.uri)
    server.start()
    yield made
    server.kill()


def made_in(folder: Path, store: str, uri: str) -> Shown:
    """The sweep in ``folder``, and what a server at ``uri`` has got of it in the database ``store``."""
    home = folder / "runs" / "many"
    sweep = settled_sweep(home)
    uploader = Uploader(home, sweep, store, "lora-lab")
    uploader.send()
    uploader.finish()
    assert not uploader.unsent() and not uploader.refused
    state = json.loads((home / "tracking.json").read_text())
    (known,) = state["stores"].values()
    known["uri"] = uri  # a user's sweep is sent to the server, not into the database behind it
    add_rows(Path(store.removeprefix("sqlite:///")), sweep, known["runs"])
    write_json(home / "tracking.json", state)
    (home / "config.yaml").write_text(f"tracking: {{uri: '{uri}'}}\n")
    return Shown(sweep, folder, uri, known["runs"])


def settled_sweep(folder: Path) -> Sweep:
    """A random sweep over three numbers, as its folder is when the first runs are settled."""
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
    spool = Spool(folder)
    for trial in range(SENT):
        result = result_of(sweep, trial)
        spool.started(result.run, sweep.spec_of(thaw(result.point), result.seed), STEPS, 0)
        for step in range(1, STEPS):
            spool.step(result.run, StepMetrics(step, step / STEPS, 2.5 - step / 50, 1e-3, 0.5, 100, 40, 0.05))
        spool.ended(result)
        write_json(folder / "runs" / result.run / "result.json", result.to_tree(), durable=False)
    return sweep


def result_of(sweep: Sweep, trial: int) -> RunResult:
    """What came out of a trial's only run: the larger the rank, the better."""
    dice = random.Random(trial)
    rank = round(2 ** dice.uniform(0, 6))
    point = {"method.r": rank, "optimizer.lr": 10 ** dice.uniform(-4, -2), "method.dropout": dice.uniform(0, 0.3)}
    loss = 2 - 0.1 * rank**0.5 + dice.uniform(0, 0.05)
    return RunResult(
        run_id(trial, 0), trial, 0, sweep.spec_of(point, 0).key, Outcome.COMPLETED, pairs(point), eval_loss=loss,
        best_eval_loss=loss, base_eval_loss=2.5, train_loss=loss, steps=STEPS, tokens=1000, seconds=1.0,
        started=STARTED + 60 * trial, ended=STARTED + 60 * trial + 60,
    )  # fmt: skip


def params_of(sweep: Sweep, result: RunResult) -> dict[str, str]:
    """The parameters of a run, as the uploader sends them."""
    params = run_params(sweep.spec_of(thaw(result.point), result.seed))
    return params | axis_params(sweep, params)


def add_rows(database: Path, sweep: Sweep, runs: dict[str, str]) -> None:
    """Add the runs beyond those that were sent; ``runs`` gets their ids by name."""
    with contextlib.closing(sqlite3.connect(database)) as store, store:
        columns = {
            table: [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
            for table in ("runs", "tags", "metrics", "latest_metrics")
        }
        sent = result_of(sweep, 0)
        there = dict(store.execute("SELECT key, value FROM params WHERE run_uuid = ?", (runs[sent.run],)))
        assert there == params_of(sweep, sent)
        for trial in range(SENT, RUNS):
            result, like, made = result_of(sweep, trial), runs[run_id(trial % SENT, 0)], f"{trial:032x}"
            runs[result.run] = made
            for table, names in columns.items():
                found = ", ".join("?" if column == "run_uuid" else column for column in names)
                store.execute(f"INSERT INTO {table} SELECT {found} FROM {table} WHERE run_uuid = ?", (made, like))
            store.execute(
                "UPDATE runs SET name = ?, start_time = ?, end_time = ? WHERE run_uuid = ?",
                (result.run, int(result.started * 1000), int(result.ended * 1000), made),
            )
            params = params_of(sweep, result)
            rows = [(made, key, value) for key, value in params.items()]
            store.executemany("INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)", rows)
            tags = {"mlflow.runName": result.run, "lora_lab.run": result.run, "trial": str(trial), "key": result.key}
            numbers = final_metrics(result)
            numbers |= axis_metrics(sweep, numbers)
            for table, values, last in (
                ("tags", tags, ""),
                ("metrics", numbers, f"AND step = {STEPS}"),
                ("latest_metrics", numbers, ""),
            ):
                changes = [(value, made, key) for key, value in values.items()]
                store.executemany(f"UPDATE {table} SET value = ? WHERE run_uuid = ? AND key = ? {last}", changes)


@pytest.fixture
def links(shown: Shown, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What ``lora-lab ui`` prints: the table's address and the compare page's."""
    monkeypatch.chdir(shown.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["ui", "many"]) == 0
    table, compare = re.findall(r"http://\S+/#/\S+", capsys.readouterr().out)
    assert table.startswith(shown.uri) and compare.startswith(shown.uri)
    return table, compare


@pytest.fixture
def page(browser: Browser) -> Page:
    """Wide: MLflow's assistant takes a part of it."""
    return browser.page(2400, 1200)


def test_the_table_begins_with_the_best_runs_and_has_a_column_for_every_axis(
    links: tuple[str, str], shown: Shown, page: Page
) -> None:
    page.open(links[0])
    page.until("document.querySelectorAll('.ag-center-cols-container .ag-row').length > 20")
    button = "document.querySelector('[data-testid=column-selection-dropdown]').click()"
    page.value(button)
    page.until("document.activeElement.placeholder === 'Search columns'")
    page.type("axis.")
    names = "[...document.querySelectorAll('[class*=tree-treenode]')].map((node) => node.innerText.trim())"
    page.until(f"{names}.includes('Metrics (1)')")
    found = ["Metrics (1)", "axis.eval_loss", "Parameters (3)", *AXES]
    assert page.value(f"{names}.filter((name) => name)") == found
    groups = "[...document.querySelectorAll('[class*=tree-treenode]')].filter((node) => / \\(\\d/.test(node.innerText))"
    page.value(f"{groups}.forEach((node) => node.querySelector('[class*=tree-checkbox]').click())")
    headers = "[...document.querySelectorAll('[role=columnheader]')].map((header) => header.innerText)"
    page.until(f"{json.dumps(AXES)}.every((axis) => {headers}.includes(axis))")
    page.value(button)
    page.until("!document.querySelector('[placeholder=\"Search columns\"]')?.offsetParent")
    page.picture("mlflow_table.png")
    results = sorted((result_of(shown.sweep, trial) for trial in range(RUNS)), key=lambda result: result.eval_loss or 0)
    for row, result in enumerate(results[:10]):
        cells = f"[...document.querySelectorAll('.ag-row[row-index=\"{row}\"] .ag-cell')]"
        said = page.value(f"{cells}.flatMap((cell) => cell.innerText.trim().split('\\n'))")
        params = params_of(shown.sweep, result)
        assert {result.run, *(params[axis] for axis in AXES)} <= set(said)


def test_the_compare_page_begins_with_the_swept_axes(links: tuple[str, str], shown: Shown, page: Page) -> None:
    page.open(links[1])
    page.until(f"{PLOT}.length")
    assert page.value(PLOT) == [*AXES, "axis.eval_loss"]
    names = "[...document.querySelector('table').rows[1].cells].map((cell) => cell.innerText)"
    assert page.value(names)[1:] == [run_id(trial, 0) for trial in range(0, RUNS, 10)]
    page.picture("mlflow_compare.png")
    drawn = "[...document.querySelectorAll('.parcoords .axis')].map((axis) => axis.__data__.values.length)"
    assert set(page.value(drawn)) == {RUNS // 10}
