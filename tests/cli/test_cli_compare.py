"""``lora-lab compare`` and the files of ``lora-lab report``, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_lab.cli.main import main
from lora_lab.spec import Sweep

Fabricate = Callable[..., Sweep]
SPACE = {"method.r": {"choices": [2, 8, 32]}, "method.alpha_over_r": {"choices": [0.5, 1, 2]}}


def loss(point: dict[str, float], seed: int) -> float:
    return 1 + 1 / point["method.r"] - point["method.alpha_over_r"] / 100 + 0.004 * seed


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fabricate: Fabricate) -> None:
    monkeypatch.chdir(tmp_path)
    fabricate(SPACE, loss)


def out(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def test_a_sweep_and_its_repetition(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE, lambda p, s: loss(p, s) + 0.1 * (p["method.r"] == 2), name="again")
    text = out(capsys, "compare", "demo", "again")
    assert "18 completed runs have the same key in both sweeps; 12 of them gave the same eval_loss." in text
    assert "3 of 9 configurations moved by more than seeds explain: r=2 alpha_over_r=0.5" in text
    assert "| B - A |" in out(capsys, "compare", "demo", "again", "--md", "--top", "2")
    tree = json.loads(out(capsys, "compare", "demo", "again", "--json", "--metric", "seconds"))
    assert (tree["metric"], tree["runs"], tree["same"]) == ("seconds", 18, 18)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["compare", "demo"], "second"),
        (["compare", "demo", "dem"], "did you mean 'demo'"),
        (["compare", "demo", "other"], "no run in common"),
        (["compare", "demo", "demo", "--top", "0"], "--top: must be 1 or more"),
        (["report", "--baseline", "r8"], "expected PATH=VALUE"),
        (["report", "--baseline", "r=9"], "is no cell of the table"),
        (["report", "--html", "nowhere/else/report.html/x/y"], "nowhere"),
        (["report", "--html", "."], "."),
        (["report", "--figures", "nowhere"], "nowhere"),
        (["report", "--store", "http://127.0.0.1:9"], "the tracking server does not answer"),
        (["report", "--store", "sqlite:///gone.db"], "no MLflow store at gone.db"),
        (["report", "--store", "nonsense://here"], "not a tracking URI"),
        (["report", "--experiment", "llama"], "--experiment belongs to --store"),
        (["sync", "demo", "--wait", "inf"], "--wait: must be a positive number"),
        (["sync", "dem"], "did you mean 'demo'"),
        (["sync", "demo", "--store", "http://127.0.0.1:9"], "the tracking server does not answer"),
    ],
)
def test_bad_input(fabricate: Fabricate, capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    fabricate({"method.r": {"choices": [3, 5]}}, name="other")
    Path("nowhere").write_text("a file where a folder is needed")
    if argv[0] == "report":
        argv = ["report", "demo", *argv[1:]]
    assert main(argv) == 2
    assert not Path("gone.db").exists()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and words in captured.err


def test_the_report_as_page_figures_latex_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(
        capsys, "report", "demo", "--html", "out/page.html", "--figures", "figures", "--baseline", "r=2,alpha_over_r=1"
    )
    assert text.splitlines()[0].startswith("out/page.html (2.") and "figures in figures" in text
    page = Path("out/page.html").read_text(encoding="utf-8")
    assert "Sweep demo: 18 of 18 runs settled" in page and "better than the baseline" in page
    assert len(list(Path("figures").glob("*.png"))) == len(list(Path("figures").glob("*.svg"))) > 5
    latex = out(capsys, "report", "demo", "--latex")
    assert latex.count("\\toprule") == latex.count("\\bottomrule") >= 2 and "\\textbf{" in latex
    assert main(["report", "demo", "--json", "--html", "out/again.html"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["sweep"] == "demo" and captured.err.startswith("out/again.html (")
    assert out(capsys, "report", "demo", "--csv", "--html", "out/csv.html").startswith("sweep,trial,run")
    assert Path("out/csv.html").exists()
    cells = out(capsys, "report", "demo", "--cells", "--rows", "method.r,method.alpha_over_r").splitlines()
    assert cells[0].startswith("method.r,method.alpha_over_r,metric,mean,std,ci,n") and len(cells) == 10
