"""The process that brings a sweep to MLflow while it trains: ``lora-lab sync --follow``, and this end of its pipe."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_lab.spec import Execution, Sweep, to_tree
from lora_lab.tracking import Lag, open_tracker, resolve_uri

PATIENCE_SECONDS = 15.0
"""For the process to draw the report, and to end, beyond the time it is given to send the rest."""

log = logging.getLogger(__name__)


class Uploading:
    """A process that follows a sweep's folder into MLflow. It never raises, and training never waits for it.

    The URI goes through its standard input: a password would be seen among the arguments of a process.
    """

    def __init__(self, sweep: Sweep, execution: Execution) -> None:
        """Nothing is started before :meth:`start`."""
        tracking = replace(execution.tracking, uri=resolve_uri(execution.tracking))
        self._sweep, self._execution = sweep, execution
        self._begin = {"sweep": sweep.to_tree(), "tracking": to_tree(tracking)}
        self._folder = Path(execution.folder)
        self._process: subprocess.Popen[str] | None = None
        self._answer: list[str] = []

    def start(self) -> None:
        """Start the process. Returns at once."""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lora_lab.cli.main", "sync", "--follow", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what it has to say is in logs/tracking.log, without secrets
                text=True,
                process_group=0,  # Ctrl-C is for the training; this process ends when it is told to
            )
        except OSError as error:
            log.warning("MLflow is not sent to while this sweep trains: %s", error)
            return
        self._say(self._begin)

    def close(self, timeout: float = 60.0, *, report: bool = True) -> Lag:
        """Let it send what is left, for ``timeout`` seconds at most, and say what is missing then.

        With ``report`` the sweep's tables and plots are written and sent, too.
        """
        if self._process is None:
            return self._lag("the process that sends could not be started")
        self._say({"seconds": timeout, "report": report})
        reader = threading.Thread(target=self._listen, daemon=True)
        reader.start()
        reader.join(timeout + PATIENCE_SECONDS)
        if reader.is_alive():
            self._process.kill()
            self._process.wait()
            self._close_input()
            return self._lag("the time to send the rest was up")
        self._process.wait()
        self._close_input()
        try:
            answer = json.loads(self._answer[0])
        except ValueError:
            return self._lag(f"the process that sends ended; see {self._folder / 'logs' / 'tracking.log'}")
        return Lag() if answer is None else Lag(**answer)

    def _lag(self, error: str) -> Lag:
        return open_tracker(self._sweep, self._execution).lag(error)

    def _listen(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        with self._process.stdout as output:
            self._answer.append(output.readline())

    def _close_input(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _say(self, tree: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(tree) + "\n")
            self._process.stdin.flush()
        except OSError as error:  # it has died; close() says so
            log.info("the process that sends to MLflow is gone: %s", error)
