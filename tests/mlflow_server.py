"""A real MLflow server of the test's own, which may be killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
from processes import until

START_SECONDS = 400.0
"""Of a new store, whose tables MLflow makes in some forty migrations."""
END_SECONDS = 30.0


class MlflowServer:
    """``mlflow server`` on a port of 127.0.0.1, with its artifacts in ``folder``, and its ``store``: SQLite there,
    where none is named."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.store = store or f"sqlite:///{folder}/mlflow.db"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--backend-store-uri", self.store]
        artifacts = ["--artifacts-destination", str(self._folder / "artifacts")]
        own = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": "",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes more, for what nobody asks here
        }
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words, *artifacts],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,  # its workers are killed with it
                env=os.environ | own,
            )
        try:
            until(self._answers, "MLflow's server to answer", START_SECONDS, self.said)
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.said()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def said(self) -> str:
        """What it has said so far."""
        return (self._folder / "server.log").read_text()

    def kill(self) -> None:
        """SIGKILL, to it and all that it has started; afterwards none of them is there."""
        if self._process is None:
            return
        top, self._process = self._process, None
        family = processes_of(top.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(top.pid, signal.SIGKILL)  # at once: none of them starts another
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        top.wait()
        until(lambda: not processes_of(top.pid), "the end of MLflow's processes", END_SECONDS)


def processes_of(session: int) -> list[psutil.Process]:
    """The living processes of a session, and the children of its leader that have left it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    with contextlib.suppress(psutil.NoSuchProcess):
        found += psutil.Process(session).children(recursive=True)
    return found
