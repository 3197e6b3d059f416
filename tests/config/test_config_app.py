"""Single runs through Hydra's own application: folders, multirun, what it prints, what it refuses."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
import yaml

from lora_lab.config import app
from lora_lab.errors import BadInput, RunFailed
from lora_lab.spec.optimizer import OPTIMIZERS

Done = list[app.Job]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*overrides: str, multirun: bool = False) -> Done:
    done: Done = []
    app.run_app(overrides, done.append, multirun=multirun)
    return done


def test_one_run_in_hydras_folder(tmp_path: Path) -> None:
    (job,) = run("model=tiny", "method.r=4", "data.columns.output=y", "device=cpu")
    spec, folder = job.spec, job.folder
    assert (spec.model.name, spec.method.r, job.device) == ("tiny", 4, "cpu")
    assert dict(spec.data.columns) == {"output": "y"}
    assert folder.is_relative_to(tmp_path / "outputs")
    kept = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert kept["method"]["r"] == 4
    assert "method.r=4" in yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    assert (folder / "train.log").is_file()


def test_the_folder_can_be_said() -> None:
    (job,) = run("model=tiny", "hydra.run.dir=here/r${method.r}", "method.r=4")
    assert job.folder == Path("here/r4").resolve()


def test_multirun_does_every_combination(tmp_path: Path) -> None:
    done = run("model=tiny", "method.r=2,4", "schedule=linear,cosine", "method.layers=[0]", multirun=True)
    assert [(job.spec.method.r, job.spec.schedule.name) for job in done] == [
        (2, "linear"),
        (2, "cosine"),
        (4, "linear"),
        (4, "cosine"),
    ]
    assert len({job.folder for job in done}) == 4
    assert all(job.folder.is_relative_to(tmp_path / "multirun") for job in done)
    assert done[2].overrides == ("model=tiny", "method.r=4", "schedule=linear", "method.layers=[0]")


def test_multirun_takes_ranges_and_globs() -> None:
    done = run("model=tiny", "method.r=range(1,3)", "schedule=glob(c*,exclude=*_*)", multirun=True)
    assert [(job.spec.method.r, job.spec.schedule.name) for job in done] == [
        (1, "constant"),
        (1, "cosine"),
        (2, "constant"),
        (2, "cosine"),
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.r=4,0"], "method.r: must be 1 or more, got 0."),
        (["schedule=linear,cosin"], "schedule: no option 'cosin'; did you mean 'cosine'?"),
        (["method.r=2,x"], "method.r: expected a whole number, got 'x'."),
        (["device=cpu,gpu"], "device: must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_no_job_of_a_multirun_starts_when_one_is_bad(overrides: list[str], message: str, tmp_path: Path) -> None:
    done: Done = []
    with pytest.raises(BadInput) as refusal:
        app.run_app(["model=tiny", *overrides], done.append, multirun=True)
    assert message in str(refusal.value)
    assert not done
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RunFailed("the loss is nan"), ZeroDivisionError("a bug"), KeyboardInterrupt()])
def test_what_a_job_raises_arrives_as_it_is_and_ends_all(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    started: Done = []

    def do(job: app.Job) -> None:
        started.append(job)
        raise error

    with pytest.raises(type(error)) as raised:
        app.run_app(["model=tiny", "method.r=1,2"], do, multirun=True)
    assert raised.value is error
    assert len(started) == 1
    assert capfd.readouterr().err == ""


def test_the_process_is_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    handlers, level, argv = logging.getLogger().handlers[:], logging.getLogger().level, sys.argv[:]
    run("model=tiny")
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger().level == level
    assert sys.argv == argv
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert capfd.readouterr() == ("", "")


def test_the_log_of_a_job_goes_to_its_file() -> None:
    def do(job: app.Job) -> None:
        logging.getLogger("lora_lab.engine").info("step one")

    app.run_app(["model=tiny", "hydra.run.dir=here"], do)
    assert "step one" in Path("here/train.log").read_text()


def test_show_prints_what_hydra_shows(capsys: pytest.CaptureFixture[str]) -> None:
    app.show(["model=tiny", "method.r=4"], "--cfg", "job")
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["method"]["r"] == 4
    assert shown["model"]["config"]["hidden_size"] == 32
    assert "sweep" not in shown
    with pytest.raises(BadInput, match=r"did you mean 'method\.r'"):
        app.show(["method.rr=4"], "--cfg", "job")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("lora-lab model=t", {"model=tiny"}),
        ("lora-lab method.alp", {"method.alpha=", "method.alpha_over_r="}),
        ("lora-lab model=tiny optimizer=", {f"optimizer={name}" for name in OPTIMIZERS}),
    ],
)
def test_completions(
    typed: str, offered: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", typed)
    app.complete()
    assert set(capsys.readouterr().out.split()) == offered
