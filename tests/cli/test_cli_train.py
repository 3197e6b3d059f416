"""``lora-lab train``: a real run of the tiny model, Hydra's conventions, and how failures end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lab.cli.main import main
from lora_lab.cli.train import outcome_lines
from lora_lab.errors import Interrupted
from lora_lab.spec import Outcome, RunResult, RunSpec

SMALL = ["model=tiny", "data.train_size=16", "data.eval_size=4", "budget.steps=2", "budget.batch_size=4", "device=cpu"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))


def result(folder: Path, **fields: Any) -> RunResult:
    return RunResult(run="t0000-s0", trial=0, seed=0, key="k", **({"outcome": Outcome.COMPLETED} | fields))


def test_a_run_trains_and_says_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "method.r=2", "hydra.run.dir=out"]) == 0
    shown = capsys.readouterr().out
    kept = json.loads(Path("out/result.json").read_text())
    assert kept["outcome"] == "COMPLETED"
    assert kept["steps"] == 2
    assert f"eval loss    {kept['base_eval_loss']:.4f} -> {kept['eval_loss']:.4f}" in shown
    kinds = [json.loads(line)["kind"] for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert (kinds[0], kinds.count("step"), kinds[-1]) == ("started", 2, "ended")
    adapter = Path("out").resolve() / kept["adapter"]
    assert f"adapter      {adapter}" in shown
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 2
    assert (adapter / "adapter_model.safetensors").is_file()
    assert yaml.safe_load(Path("out/.hydra/config.yaml").read_text())["method"]["r"] == 2


def test_multirun_trains_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *SMALL, "method.r=1,2", "hydra.sweep.dir=out"]) == 0
    results = [json.loads(Path(f"out/{job}/result.json").read_text()) for job in (0, 1)]
    assert results[0]["trainable_parameters"] * 2 == results[1]["trainable_parameters"]
    assert results[0]["key"] != results[1]["key"]


def test_a_run_that_fails_is_said_and_the_others_are_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[int] = []

    def train_one(spec: RunSpec, folder: Path, **_: object) -> RunResult:
        trained.append(spec.method.r)
        if spec.method.r == 1:
            return result(folder, outcome=Outcome.DIVERGED, message="the loss became nan at step 3.")
        return result(folder, eval_loss=1.0)

    monkeypatch.setattr("lora_lab.worker.single.train_one", train_one)
    assert main(["train", "-m", "model=tiny", "method.r=1,2"]) == 1
    assert trained == [1, 2]
    assert "error: DIVERGED: the loss became nan at step 3." in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def train_one(spec: RunSpec, folder: Path, **_: object) -> RunResult:
        raise Interrupted("stopped")

    monkeypatch.setattr("lora_lab.worker.single.train_one", train_one)
    assert main(["train", "model=tiny", "data.tasks=[dates, units]", "hydra.run.dir=out"]) == 130
    command = f"lora-lab train model=tiny 'data.tasks=[dates, units]' hydra.run.dir={tmp_path / 'out'}"
    assert command in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.r=0"], "method.r: must be 1 or more, got 0."),
        (["method.rr=4"], "did you mean 'method.r'?"),
        (["method.r=2,4"], "add --multirun to run each"),
        (["sweep.repeats=2"], "use it with `lora-lab sweep`"),
        (["data=alpaca", "data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["--package", "method"], "--package and --resolve belong to --cfg"),
        (["--config-dir", "nowhere"], "--config-dir: no folder nowhere."),
        (["--shell-completion", "install=tcsh"], "bash and zsh are known, got 'tcsh'."),
        (["--multirn"], "did you mean '--multirun'?"),
        (["-m", "model=tiny", "method.r=2,0"], "method.r: must be 1 or more, got 0."),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "model=tiny", *arguments] if "-m" not in arguments else ["train", *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_the_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "model=tiny", "method.r=3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"]["r"] == 3
    assert main(["train", "model=tiny", "-c", "job", "-p", "optimizer"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "adamw"
    assert main(["train", "--info", "defaults"]) == 0
    assert "model/smollm2_135m" in capsys.readouterr().out


def test_options_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my conf/optimizer").mkdir(parents=True)
    Path("my conf/optimizer/fast.yaml").write_text("name: adamw\nlr: 0.5\n")
    assert main(["train", "--config-dir", "my conf", "optimizer=fast", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["lr"] == 0.5


def test_completions_of_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--shell-completion", "query", "lora-lab train model=tiny method.alp"]) == 0
    assert capsys.readouterr().out.split() == ["method.alpha=", "method.alpha_over_r="]


def test_tab_completion_in_bash() -> None:
    programs = Path(sys.executable).parent
    script = (
        'eval "$(lora-lab train --shell-completion install=bash)"\n'
        'COMP_LINE="lora-lab train schedule=co"; COMP_WORDS=(lora-lab train schedule=co); COMP_CWORD=2\n'
        '_lora_lab; echo "${COMPREPLY[@]}"\n'
    )
    env = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    answer = subprocess.run(["bash", "-c", script], env=env, check=True, capture_output=True, text=True)
    assert answer.stdout.split() == ["schedule=constant", "schedule=cosine", "schedule=cosine_restarts"], answer.stderr


def test_lines_of_a_result_leave_out_what_is_not_there(tmp_path: Path) -> None:
    assert outcome_lines(result(tmp_path, outcome=Outcome.FAILED), tmp_path) == [
        "steps        0, 0 tokens, 0 s",
        f"files        {tmp_path}",
    ]
    full = result(tmp_path, base_eval_loss=2.0, eval_loss=1.5, base_exact_match=0.0, exact_match=0.25, adapter="a")
    assert outcome_lines(full, tmp_path)[:2] == ["eval loss    2.0000 -> 1.5000", "exact match  0.000 -> 0.250"]
