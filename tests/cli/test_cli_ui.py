"""``lora-lab ui`` starts MLflow's own UI on the store that the sweep writes to."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from lora_lab.cli import ui
from lora_lab.cli.main import main
from lora_lab.config import compose_sweep
from lora_lab.spec import Sweep

Fabricate = Callable[..., Sweep]


NOTHING_YET = "Nothing of runs/demo is there yet; lora-lab sync runs/demo sends it.\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as probe:  # MLflow's own port may be taken on this machine
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setattr(ui, "PORT", probe.getsockname()[1])


@pytest.fixture
def sweep(fabricate: Fabricate) -> Callable[..., None]:
    """A sweep in runs/demo, with its resolved configuration where overrides are given."""

    def write(*overrides: str) -> None:
        fabricate({"method.r": {"choices": [2, 8]}})
        if overrides:
            text = compose_sweep("rank_alpha", ["model=tiny", *overrides]).yaml
            Path("runs/demo/config.yaml").write_text(text)

    return write


class Server:
    """MLflow's server, which stands outside: what was started, and how it answers being waited for."""

    started: ClassVar[list[list[str]]] = []
    waits: ClassVar[list[type[BaseException] | None]] = []
    ended: ClassVar[list[str]] = []

    def __init__(self, command: list[str]) -> None:
        self.started.append(command)

    def wait(self, timeout: float | None = None) -> int:
        trouble = self.waits.pop(0) if self.waits else None
        if trouble is KeyboardInterrupt:
            raise KeyboardInterrupt
        if trouble is subprocess.TimeoutExpired:
            assert timeout is not None
            raise subprocess.TimeoutExpired("mlflow", timeout)
        return 0

    def terminate(self) -> None:
        self.ended.append("terminated")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were started."""
    for kept in (Server.started, Server.waits, Server.ended):
        kept.clear()
    monkeypatch.setattr(subprocess, "Popen", Server)
    return Server.started


def test_the_default_store_in_the_working_folder(
    sweep: Callable[..., None], commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep()
    Path("mlflow.db").touch()
    assert main(["ui"]) == 0
    assert commands == [[sys.executable, "-m", "mlflow", "ui"]]
    opened = f"Open http://127.0.0.1:{ui.PORT} in a browser; Ctrl-C ends it.\n"
    assert capsys.readouterr().out == f"mlflow ui\n{NOTHING_YET}{opened}"


def test_print_only_prints(
    sweep: Callable[..., None], commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("tracking.uri=sqlite:////data/all runs.db")
    assert main(["ui", "demo", "--print", "--port", "5001"]) == 0
    assert commands == []
    assert (
        capsys.readouterr().out
        == f"mlflow ui --backend-store-uri 'sqlite:////data/all runs.db' --port 5001\n{NOTHING_YET}"
    )


def test_the_store_that_the_sweep_was_sent_to_wins_over_the_folder_one_stands_in(
    sweep: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Path("runs/demo/tracking.json").write_text(json.dumps({"stores": {"0": {"uri": uri, "experiment": "lora-lab"}}}))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert main(["ui", str(tmp_path / "runs/demo"), "--print"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"mlflow ui --backend-store-uri {uri}"


def test_a_tracking_server_has_its_own(
    sweep: Callable[..., None], commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("tracking.uri=https://me:secret@mlflow.example.org")
    assert main(["ui", "demo"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("A tracking server shows its own UI: https://") and "mlflow.example.org" in text
    assert "secret" not in text and commands == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tracking=none"], "keeps no MLflow record (tracking=none)"),
        (["tracking.uri=sqlite:////nowhere/mlflow.db"], "no MLflow store at /nowhere/mlflow.db yet"),
    ],
)
def test_no_store_no_ui(
    sweep: Callable[..., None],
    commands: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    words: str,
) -> None:
    sweep(*overrides)
    assert main(["ui", "demo"]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == "" and commands == []


def test_a_port_that_cannot_be_had_is_refused(
    sweep: Callable[..., None], commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep()
    Path("mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "demo", "--port", str(port)]) == 2
    assert f"port {port} cannot be listened on (Address already in use)" in capsys.readouterr().err
    assert main(["ui", "demo", "--port", "70000"]) == 2
    assert "--port: must be 1 to 65535, got 70000." in capsys.readouterr().err
    assert commands == []


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize("stubborn", [False, True])
def test_ctrl_c_ends_it_well(sweep: Callable[..., None], stubborn: bool) -> None:
    sweep()
    Path("mlflow.db").touch()
    Server.waits[:] = [KeyboardInterrupt, *([subprocess.TimeoutExpired] if stubborn else [])]
    assert main(["ui", "demo"]) == 0
    assert Server.ended == (["terminated"] if stubborn else [])
