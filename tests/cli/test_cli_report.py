"""``lora-lab report`` and the final screen of a sweep, as a user sees them."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from lora_lab.cli.main import main
from lora_lab.cli.summary import print_summary
from lora_lab.spec import Outcome, Sweep

Fabricate = Callable[..., Sweep]
SPACE = {"method.r": {"choices": [2, 8, 32]}, "method.alpha_over_r": {"choices": [0.5, 1, 2]}}
VALUES = {2: 1.3, 8: 1.2, 32: 1.25}


def loss(point: dict[str, Any], seed: int) -> float:
    return VALUES[point["method.r"]] - point["method.alpha_over_r"] / 100 + 0.004 * seed


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def out(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def test_piped_report(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE, loss)
    text = out(capsys, "report", "demo", "--spread", "std")
    lines = text.splitlines()
    assert lines[0] == "Sweep demo: 18 of 18 runs settled (18 completed), in runs/demo"
    row = next(line for line in lines if line.startswith("8    "))
    assert row.split("  ")[-1].strip() == "10.0 s" and "5.5 MB" in row and "460,800" in row
    assert "1.1970 ± 0.0028    1.1920 ± 0.0028    1.1820 ± 0.0028 *" in row
    assert "base model                    2.5000             2.5000             2.5000" in lines
    assert "Best: r=8 alpha_over_r=2: eval_loss 1.182 (base model 2.500), exact_match 0.400 (base model 0.020)" in lines
    assert "Its adapter: runs/demo/runs/t0005-s0/adapter (seed 0, the best of 2)" in lines
    assert "eval_loss over seeds" in lines
    assert any(line.startswith("Seeds differ by ±0.0028, configurations by ±0.0") for line in lines)
    assert lines[lines.index("Overfitting") + 1].startswith("At the end of training the held-out loss is ")
    assert "\x1b" not in text


def test_report_needs_no_name(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE, loss)
    assert out(capsys, "report") == out(capsys, "report", "runs/demo")


def test_csv_is_a_row_a_run(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate({"method.roles": {"masks": [["query", "value"], []]}}, outcomes={(0, 0): Outcome.DIVERGED})
    text = out(capsys, "report", "--csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 4
    needed = (
        "sweep trial run seed outcome key method.roles eval_loss base_eval_loss train_loss exact_match "
        "trainable_parameters peak_bytes seconds tokens adapter"
    )
    assert set(needed.split()) <= set(rows[0])
    assert [row["method.roles"] for row in rows] == ["query+value", "query+value", "none", "none"]
    assert (rows[0]["outcome"], rows[0]["eval_loss"], rows[0]["adapter"]) == ("DIVERGED", "", "")
    assert pd.read_csv(io.StringIO(text))["eval_loss"].tolist()[1:] == [1.01, 1.0, 1.01]


def test_markdown_is_a_page(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE, loss, outcomes={(0, 1): Outcome.DIVERGED})
    text = out(capsys, "report", "--markdown", "--spread", "std")
    assert text.startswith("# demo\n\nSweep demo: 18 of 18 runs settled (17 completed, 1 diverged), in runs/demo.\n")
    assert "- t0000-s1 diverged: the loss became NaN at step 41" in text
    assert "| 8 | 1.1970 ± 0.0028 | 1.1920 ± 0.0028 | **1.1820 ± 0.0028** | 460,800 | 5.5 MB | 10.0 s |" in text
    assert "## Consistency" in text and "| r | alpha_over_r | n | mean | std | CV | min | max |" in text


def test_json_is_strict_and_complete(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = fabricate(SPACE, loss, outcomes={(0, 0): Outcome.DIVERGED, (1, 0): None, (1, 1): None})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    tree = json.loads(out(capsys, "report", "--json"), parse_constant=refuse)
    assert tree["key"] == sweep.key and tree["planned_runs"] == 18
    assert tree["outcomes"] == {"COMPLETED": 15, "DIVERGED": 1}
    assert len(tree["table"]["cells"]) == 9
    assert tree["stability"][0]["seeds"] == 1 and tree["sections"]["consistency"]
    assert tree["table"]["cells"][1] | {"point": None} == {
        "point": None,
        "mean": None,
        "std": None,
        "n": 0,
        "planned": 2,
        "outcomes": {},
        "best": False,
        "base": 2.5,
        "ci": None,
        "difference": None,
        "holm_p": None,
    }
    assert tree["best"]["point"] == {"method.r": 8, "method.alpha_over_r": 2}
    assert tree["best"]["adapter"] == "runs/demo/runs/t0005-s0/adapter"
    assert len(tree["consistency"]["configurations"]) == 8
    assert 0 < tree["consistency"]["icc"]["value"] <= 1


def test_axes_and_metric_of_choice(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE, loss)
    text = out(capsys, "report", "--rows", "method.alpha_over_r", "--metric", "exact_match")
    assert "exact_match (higher is better)" in text and "averaged over method.r" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["report", "dem"], "did you mean 'demo'"),
        (["report", "nowhere/else"], "no sweep 'nowhere/else'"),
        (["report", "demo", "--rows", "method.rr"], "did you mean 'method.r'"),
        (["report", "demo", "--metric", "eval_los"], "did you mean 'eval_loss'"),
        (["report", "demo", "--top", "0"], "--top: must be 1 or more, got 0"),
        (["report", "demo", "--csv", "--json"], "not allowed with"),
        (["report", "demo", "--cvs"], "--csv"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(
    fabricate: Fabricate, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    fabricate(SPACE, loss)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and words in captured.err


def test_no_sweep_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert "runs/ holds no sweep yet. Start one with: lora-lab sweep rank_alpha" in capsys.readouterr().err


def test_no_result_yet(fabricate: Fabricate, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(SPACE, points=[])
    assert main(["report"]) == 2
    assert "has a result yet" in capsys.readouterr().err


def test_a_torn_result_exits_1_and_names_the_file(
    fabricate: Fabricate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fabricate(SPACE, loss)
    (tmp_path / "runs/demo/runs/t0003-s1/result.json").write_text('{"run": "t0003')
    assert main(["report"]) == 1
    assert "runs/demo/runs/t0003-s1/result.json: torn or not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_it_fits_and_the_best_is_bold(fabricate: Fabricate, width: int) -> None:
    """The real program on a pseudo-terminal."""
    fabricate(SPACE, loss)
    master, slave = pty.openpty()
    env = os.environ | {"COLUMNS": str(width), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_lab.cli.main", "report", "--spread", "std"],
        stdout=slave,
        stderr=slave,
        env=env,
        close_fds=True,
    )
    os.close(slave)
    data = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        data += chunk
    os.close(master)
    assert process.wait() == 0
    text = data.decode()
    assert "\x1b[1;32m1.1820 ± 0.0028" in text
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "1.1970 ± 0.0028" in shown and "base model" in shown


def test_a_reader_that_goes_away_is_no_error(fabricate: Fabricate) -> None:
    fabricate(SPACE, loss)
    command = f"{sys.executable} -m lora_lab.cli.main report --json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


# -- the final screen ------------------------------------------------------------------------------------


def summary(folder: Path, mlflow_ui: str | None = None, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(console, folder, mlflow_ui)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_final_screen(fabricate: Fabricate) -> None:
    fabricate(SPACE, loss)
    text = summary(Path("runs/demo"), "mlflow ui")
    assert "1.1820 ± 0.0028 *" in text and "base model" in text
    assert "Best: r=8 alpha_over_r=2" in text and "Its adapter: runs/demo/runs/t0005-s0/adapter" in text
    assert "the ranking is" in text
    commands = [line.split("#")[0].strip() for line in text.partition("Next:\n")[2].splitlines()]
    assert commands == ["lora-lab report demo", "mlflow ui", "lora-lab sweep demo sweep.repeats=4"]


def test_the_commands_go_by_the_resolved_config_and_quote_paths(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE, loss, folder=tmp_path / "my sweeps" / "demo")
    (tmp_path / "my sweeps" / "demo" / "config.yaml").write_text("sweep: {}\n")
    text = summary(Path("my sweeps/demo"))
    assert "lora-lab report 'my sweeps/demo'" in text
    assert "lora-lab sweep 'my sweeps/demo/config.yaml' sweep.repeats=4" in text


def test_commands_are_never_broken_over_lines(fabricate: Fabricate, tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 12) / "demo"
    fabricate(SPACE, loss, folder=folder)
    assert f"\n  lora-lab report {folder}\n" in summary(folder, width=60)


def test_the_final_screen_of_an_interrupted_sweep(fabricate: Fabricate) -> None:
    fabricate(SPACE, loss, outcomes={(t, s): None for t in range(4, 9) for s in (0, 1)})
    text = summary(Path("runs/demo"))
    assert "8 of 18 runs settled" in text
    assert "lora-lab sweep demo" in text and "go on where it stopped" in text and "repeats" not in text


def test_the_final_screen_when_nothing_completed(fabricate: Fabricate) -> None:
    fabricate(SPACE, outcomes={(t, s): Outcome.OUT_OF_MEMORY for t in range(9) for s in (0, 1)})
    text = summary(Path("runs/demo"))
    assert "18 of 18 runs settled (18 out of memory)" in text
    assert text.count("out of memory: the loss became NaN") == 5 and "… and 13 more like these" in text
    assert "Best" not in text
    fabricate(SPACE, points=[], name="none")
    assert "none of its 18 runs has a result yet" in summary(Path("runs/none"))
