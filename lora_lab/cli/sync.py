"""``lora-lab sync``: bring a sweep to MLflow, all that is not there yet; and the process that does so while it trains.

``lora-lab sweep`` starts this verb with ``--follow`` (:class:`lora_lab.launch.uploading.Uploading`): a process of its
own, in which importing MLflow, talking to a server and drawing the report cost the training nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import RunFailed, SpecError, StorageError, SweepFolderError

if TYPE_CHECKING:
    from lora_lab.spec import RunSpec
    from lora_lab.tracking import Lag

HELP = "bring to MLflow what it has not got of a sweep: after a server was down, or to another store"
EXAMPLE = "lora-lab sync rank_alpha --store http://localhost:5000"

NICENESS = 19
"""Of the thread that follows a sweep: it takes what training leaves over."""
LOCK_SECONDS = 1.0
"""Between two looks whether the process that sends what all workers write is still there."""
AFTER_PARENT_SECONDS = 5.0
"""How long it goes on sending when the process that started it has died."""

log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sync``."""
    parser.add_argument("sweep", nargs="*", help="sweeps in runs/, or folders (default: the newest in runs/)")
    parser.add_argument("--store", metavar="URI", help="another MLflow store than the sweep's own")
    parser.add_argument("--experiment", metavar="NAME", help="another MLflow experiment than the sweep's own")
    parser.add_argument(
        "--wait", type=float, default=3600.0, metavar="SECONDS", help="how long it may take (default: 3600)"
    )
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Send what is missing, and say so.

    Raises:
        SweepFolderError: no such sweep, or its own command is sending it now.
        StorageError: the store does not answer, or the sweep was told to keep no MLflow record.
        RunFailed: something is still missing there.
    """
    from lora_lab.analysis import find_sweep

    if args.follow:
        folder = Path(args.sweep[0])
        _log_to(folder / "logs" / "tracking.log")
        try:
            return follow(folder)
        except Exception:
            log.exception("this process has a bug, and ends")  # nobody reads its standard error
            raise
    if not 0 < args.wait <= threading.TIMEOUT_MAX:
        raise SpecError(f"--wait: must be a positive number of seconds, got {args.wait:g}.")
    missing = []
    for name in args.sweep or [None]:
        folder = find_sweep(name)
        lag, where = sync(folder, args.store, args.experiment, args.wait)
        if lag:
            missing.append(f"{folder}: {where} has not got {lag.what} ({lag.error or 'it was too slow'}).")
        else:
            print(f"{folder}: everything is in {where}")
    if missing:
        raise RunFailed(" ".join([*missing, "Nothing is lost: the same command goes on."]))
    return 0


def sync(folder: Path, uri: str | None, experiment: str | None, seconds: float) -> tuple[Lag, str]:
    """Send what is missing of the sweep in ``folder``; what is missing still, and the store's name."""
    from lora_lab.cli.ui import store_of, tracking_of
    from lora_lab.files import read_json
    from lora_lab.spec import Execution, Sweep
    from lora_lab.study.lines import file_lock
    from lora_lab.tracking import check, open_tracker, redact

    spec = tracking_of(folder)
    if uri is None:
        uri = store_of(folder)
    if "***" in uri:
        raise StorageError(
            f"{folder}: the store {uri} needs its password, which is written nowhere. Give the whole URI with "
            "--store, or in MLFLOW_TRACKING_URI."
        )
    spec = replace(spec, name="mlflow", uri=uri, experiment=experiment or spec.experiment)
    check(spec)
    with file_lock(folder / ".tracking.lock", wait=False) as mine:
        if not mine:
            raise SweepFolderError(f"{folder}: this sweep is being sent by its own command now. Wait for it, or stop.")
        sweep = Sweep.from_tree(
            {name: part for name, part in read_json(folder / "sweep.json").items() if name != "key"}
        )
        best = write_report(folder)
        tracker = open_tracker(sweep, Execution(str(folder), tracking=spec), predict=predicted)
        return tracker.close(seconds, best), f"{redact(uri)}, experiment {spec.experiment}"


def follow(folder: Path) -> int:
    """Send the sweep in ``folder`` while others train it, as the first line of standard input says.

    ``{"sweep": …, "tracking": …}`` comes first; ``{"seconds": …, "report": …}`` when training is over, and is answered
    by a line with what is missing. When the input ends without it, the process that trains has died.
    """
    from lora_lab.spec import Execution, Sweep, TrackingSpec, from_tree
    from lora_lab.study.lines import file_lock
    from lora_lab.tracking import open_tracker

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library or a program of its prints is no answer
    lines = _lines()
    begin = json.loads(lines.get())
    sweep = Sweep.from_tree(begin["sweep"])
    execution = Execution(str(folder), tracking=from_tree(TrackingSpec, begin["tracking"], "tracking"))
    said: str | None = None
    while said is None:
        with file_lock(folder / ".tracking.lock", wait=False) as mine:
            if mine:
                tracker = open_tracker(sweep, execution, predict=predicted, niceness=NICENESS)
                tracker.start()
                said = lines.get()
                end = json.loads(said) if said else {"seconds": AFTER_PARENT_SECONDS, "report": False}
                best = write_report(folder) if end["report"] else None
                print(json.dumps(vars(tracker.close(end["seconds"], best))), file=answers, flush=True)
                return 0
        with contextlib.suppress(queue.Empty):  # another process sends what all workers write, as yet
            said = lines.get(timeout=LOCK_SECONDS)
    print(json.dumps(None), file=answers, flush=True)
    return 0


def _lines() -> queue.SimpleQueue[str]:
    """The lines of standard input as they come, and an empty one at its end."""
    found: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            found.put(line)
        found.put("")

    threading.Thread(target=read, name="standard input", daemon=True).start()
    return found


@functools.cache
def predicted(spec: RunSpec, device: str) -> Mapping[str, int]:
    """Bytes by part that ``spec`` alone is planned to take on ``device``, and their peak."""
    from lora_lab.planner import plan
    from lora_lab.worker.capacity import WITHOUT_LIMIT

    found = plan(spec.at({}, seed=0), memory=WITHOUT_LIMIT, device=device)
    return {**found.parts, "peak": found.peak_bytes}


def write_report(folder: Path) -> str | None:
    """Write the sweep's tables and plots into ``folder/report``, unless they are there; the run with the best adapter.

    A sweep without results has neither.
    """
    from lora_lab.analysis import best_configuration, load_results, read_sweep
    from lora_lab.cli import report as verb
    from lora_lab.files import write_text

    try:
        frame = load_results(folder)
    except SweepFolderError:
        return None
    place, rows = folder / "report", verb.csv_text(frame)
    best = best_configuration(frame)
    if not ((place / "runs.csv").is_file() and (place / "runs.csv").read_text(encoding="utf-8") == rows):
        parser = argparse.ArgumentParser()
        verb.configure(parser)
        args = parser.parse_args(["--html", str(place / "report.html"), "--figures", str(place / "figures")])
        record = read_sweep(folder)
        report = verb.analysed(args, frame, folder)
        verb.write_files(args, record, frame, report)
        write_text(place / "report.md", verb.markdown_text(record, frame, report, args.top))
        write_text(place / "table.csv", report.table.csv())
        write_text(place / "runs.csv", rows)  # last: it says that the others are whole
    return None if best is None or best.adapter is None else best.run


def _log_to(path: Path) -> None:
    """Let this process's log, and what libraries warn of, go to ``path`` without secrets."""
    from lora_lab.tracking import redact

    class Redacted(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return redact(super().format(record))

    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Redacted("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("lora_lab").setLevel(logging.INFO)
    logging.captureWarnings(True)
