"""``lora-lab worker``: one more process that works on a sweep, on this machine or another."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.errors import BadInput, Interrupted, SweepFolderError

if TYPE_CHECKING:
    from lora_lab.spec import Execution, Sweep

HELP = "work on a sweep beside the workers it has, here or on another machine"
EXAMPLE = "lora-lab worker runs/rank_alpha"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``worker``."""
    parser.add_argument("sweep", metavar="SWEEP_DIR|STUDY_URL", help="a sweep's folder or name, or its storage's URL")
    parser.add_argument("--name", help="the study, where a storage holds several")
    parser.add_argument("--folder", help="where the sweep's folder is on this machine (default: where it was begun)")
    parser.add_argument("--device", help="the device to train on (default: as the sweep was started with)")
    parser.add_argument("--lanes", type=int, help="runs at once (default: as the sweep was started with)")
    parser.add_argument("--allow-code", action="store_true", help="let the sweep's _target_ import from any package")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Train until nothing is left.

    Raises:
        SweepFolderError: no such sweep, or its folder cannot be written.
        StorageError: the storage cannot be reached.
        Interrupted: Ctrl-C or SIGTERM; what it trained is saved, and others go on with it.
    """
    from lora_lab.launch import local
    from lora_lab.study import Study
    from lora_lab.worker.capacity import Capacity
    from lora_lab.worker.figures import figures_on
    from lora_lab.worker.tee import Tee

    execution, name = execution_for(args)
    if args.parent is not None:
        _end_with(args.parent)
    folder = Path(execution.folder)
    figures = figures_on(execution.device, execution.device_memory)
    how = execution.launcher, figures, Capacity.of(execution).refusal
    with Study.join(folder, execution.storage, name, *how, allow_code=args.allow_code) as study:
        _say(f"working on {study.sweep.name} in {folder}, process {os.getpid()}")
        with _tracked(study.sweep, execution):
            done = local.run(study.sweep, execution, study, Tee([]), say=_say, settled=lambda runs: None)
        counts = study.counts()
    if not done:
        raise Interrupted(f"Stopped; {counts.runs} of {counts.planned_runs} runs are settled, the others are saved.")
    _say(counts.halted or f"nothing is left to do: {counts.runs} of {counts.planned_runs} runs are settled")
    return 0


@contextlib.contextmanager
def _tracked(sweep: Sweep, execution: Execution) -> Iterator[None]:
    """Bring what all workers write to an MLflow server, where no other process does (the sweep's command, or another
    worker). A store that is a file of some machine is left to the sweep's command."""
    from lora_lab.launch.uploading import Uploading
    from lora_lab.study.lines import file_lock
    from lora_lab.tracking import resolve_uri

    if execution.tracking.name == "none" or not resolve_uri(execution.tracking).startswith("http"):
        yield
        return
    with file_lock(Path(execution.folder) / ".tracking.lock", wait=False) as free:
        pass
    if not free:
        yield
        return
    uploading = Uploading(sweep, execution)
    uploading.start()
    try:
        yield
    finally:
        if lag := uploading.close(report=False):
            _say(f"MLflow has not got {lag.what} yet ({lag.error}); the sweep's command sends it.")


def execution_for(args: argparse.Namespace) -> tuple[Execution, str | None]:
    """How to work on the sweep that ``args.sweep`` names, and its study's name."""
    from lora_lab.analysis import find_sweep
    from lora_lab.study.look import execution_of

    name = args.name
    if "://" in args.sweep:
        folder = Path(args.folder) if args.folder else _folder_in(args.sweep, name)
        tree = execution_of(folder) | {"storage": args.sweep}
    else:
        folder = find_sweep(args.sweep)
        tree = execution_of(folder)
    execution = execution_from(tree, folder, device=args.device, lanes=args.lanes)
    return execution, name or tree.get("study")


def execution_from(tree: dict[str, Any], folder: Path, *, device: str | None, lanes: int | None) -> Execution:
    """The execution that ``execution.json`` tells of, on this machine."""
    from lora_lab.spec import Execution, from_tree

    fields = {key: value for key, value in tree.items() if key not in ("study", "allow_code")} | {"folder": str(folder)}
    if device is not None:
        fields["device"] = device
    if lanes is not None:
        fields["max_lanes"] = lanes
    return from_tree(Execution, fields, "execution.json")


def _folder_in(url: str, name: str | None) -> Path:
    from lora_lab.study.opening import folder_in

    folder = folder_in(url, name)
    if not folder.parent.is_dir():
        raise SweepFolderError(
            f"{folder}: not there on this machine. Say where the sweep's folder is mounted: --folder FOLDER."
        )
    return folder


def _end_with(parent: int) -> None:
    """Ask this process to stop, as SIGTERM would, once ``parent`` is gone."""
    if parent <= 1:
        raise BadInput(f"--parent {parent}: not the process that started this one.")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _say(text: str) -> None:
    print(text, flush=True)
