"""A sweep of 1,000 runs in MLflow's own UI, in a real browser: the table, the compare page, parallel coordinates."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from mlflow_server import MlflowServer

from lora_lab.cli.main import main
from lora_lab.files import write_json
from lora_lab.spec import ModelSpec, Outcome, RunResult, RunSpec, Space, Strategy, Sweep, pairs, run_id
from lora_lab.tracking.uploader import Uploader

RUNS = int(os.environ.get("LORA_LAB_UI_RUNS", "1000"))
PICTURES = Path(os.environ.get("LORA_LAB_PICTURES", Path(__file__).parents[2] / "build" / "pictures"))
"""Where the screenshots are kept."""


@pytest.fixture(scope="module")
def browser() -> Browser:
    return Browser()


@pytest.fixture(scope="module")
def shown(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server's UI, and the folder of the sweep that is in it."""
    folder = tmp_path_factory.mktemp("ui")
    server = MlflowServer(folder / "server")
    sweep = fabricated(folder / "runs" / "many")
    uploader = Uploader(folder / "runs" / "many", sweep, server.store, "lora-lab")
    uploader.send()
    uploader.finish("t0000-s0")
    assert not uploader.unsent()
    server.start()
    state = json.loads((folder / "runs" / "many" / "tracking.json").read_text())
    (store,) = state["stores"].values()
    store["uri"] = server.uri  # a user's sweep was sent to the server, not to the database behind it
    write_json(folder / "runs" / "many" / "tracking.json", state)
    (folder / "runs" / "many" / "config.yaml").write_text(f"tracking: {{uri: '{server.uri}'}}\n")
    yield server.uri, folder
    server.kill()


def fabricated(folder: Path) -> Sweep:
    """A sweep over four axes with one seed, as its folder is when all runs are settled."""
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
    dice = random.Random(0)
    for trial in range(RUNS):
        point = {
            "method.r": round(2 ** dice.uniform(0, 6)),
            "optimizer.lr": 10 ** dice.uniform(-4, -2),
            "method.dropout": dice.uniform(0, 0.3),
        }
        loss = 2 - 0.1 * point["method.r"] ** 0.5 + dice.uniform(0, 0.05)
        run = run_id(trial, 0)
        result = RunResult(
            run, trial, 0, f"{trial:064x}", Outcome.COMPLETED, pairs(point), eval_loss=loss, best_eval_loss=loss,
            base_eval_loss=2.5, train_loss=loss, steps=20, tokens=1000, seconds=1.0, started=1.7e9, ended=1.7e9 + 60,
        )  # fmt: skip
        write_json(folder / "runs" / run / "result.json", result.to_tree(), durable=False)
    return sweep


def picture(name: str) -> Path:
    PICTURES.mkdir(parents=True, exist_ok=True)
    return PICTURES / name


def text(document: str) -> str:
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", " ", document, flags=re.DOTALL))


def printed_links(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    assert main(["ui", "many"]) == 0
    return re.findall(r"http://\S+/#/\S+", capsys.readouterr().out)


def test_the_printed_links_open_table_and_compare_page(
    shown: tuple[str, Path], browser: Browser, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = shown
    table, compare = printed_links(folder, capsys, monkeypatch)
    assert table.startswith(address) and compare.startswith(address)

    page = text(browser.open(table, picture("mlflow_table.png")))
    assert "lora-lab" in page and "many" in page and re.search(r"\bt\d{4}-s0\b", page), page[:2000]

    document = browser.open(compare, picture("mlflow_compare.png"))
    page = text(document)
    assert re.search(r"Comparing \d+ Runs", page), page[:2000]
    assert "Parallel Coordinates Plot" in page
    labels = re.findall(r'class="axis-title"[^>]*>([^<]+)<', document)
    assert labels == ["axis.method.dropout", "axis.method.r", "axis.optimizer.lr", "axis.eval_loss"], labels


def test_the_charts_of_the_experiment_open(shown: tuple[str, Path], browser: Browser) -> None:
    address, folder = shown
    state = json.loads((folder / "runs" / "many" / "tracking.json").read_text())
    (store,) = state["stores"].values()
    url = f"{address}/#/experiments/{store['experiment_id']}/runs?compareRunsMode=CHART"
    page = text(browser.open(url, picture("mlflow_charts.png")))
    assert "eval_loss" in page, page[:2000]
