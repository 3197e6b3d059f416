"""``lora-lab sweep``: run a sweep, or go on with it; the same command does both."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.cli.commands import typed
from lora_lab.errors import ConfigError, Interrupted, RunFailed

if TYPE_CHECKING:
    from rich.console import Console

    from lora_lab.config import Composed
    from lora_lab.study import Study

HELP = "run a sweep, or go on with it where it was stopped"
EXAMPLE = "lora-lab sweep rank_alpha 'sweep.space={method.r: {choices: [4, 16]}}' sweep.repeats=3"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sweep``."""
    parser.add_argument("sweep", metavar="SWEEP", help="the name of a shipped sweep, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, e.g. model=tiny")
    parser.add_argument(
        "--fresh", action="store_true", help="start over under a new name; the former sweep stays as it is"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with launcher=slurm: print the script that sbatch would get, and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Run what is left of the sweep, then print its table.

    Raises:
        BadInput: the configuration, data, model, folder or a store cannot be used; nothing was trained.
        RunFailed: some runs ended FAILED or OUT_OF_MEMORY; the others are done.
        Interrupted: Ctrl-C; the same command goes on.
    """
    from rich.console import Console

    from lora_lab.config import compose_sweep
    from lora_lab.files import write_text
    from lora_lab.study import Study
    from lora_lab.tracking import check as check_tracking
    from lora_lab.worker.figures import figures_on
    from lora_lab.worker.preflight import check_folder

    overrides = list(args.overrides)
    composed = compose_sweep(args.sweep, overrides)
    if args.fresh:
        overrides += _fresh(composed)
        composed = compose_sweep(args.sweep, overrides)
    if args.dry_run:
        print(_script(composed))
        return 0
    folder = Path(composed.execution.folder)
    check_tracking(composed.execution.tracking)
    if not (folder / "sweep.json").exists():
        _check_input(composed)
    check_folder(folder)
    console = Console(highlight=False)
    with Study.open(composed.sweep, composed.execution, figures_on(composed.execution.device)) as study:
        write_text(folder / "config.yaml", composed.yaml)
        counts = study.counts()
        left = counts.planned_runs - counts.runs
        if left > 0:
            _check_input(composed)
            command = typed(["lora-lab", "sweep", args.sweep, *overrides])
            if not composed.execution.launcher.follow:
                _begin(composed, console)
                return 0
            _train(composed, study, console, command)
        else:
            console.print(f"Nothing is left to do: all {counts.planned_runs} runs are settled.", soft_wrap=True)
            _catch_up(composed, console)
    _finish(composed, console)
    return 0


def _fresh(composed: Composed) -> list[str]:
    """Overrides that give the sweep a name and a folder nobody has used."""
    folder, name, n = Path(composed.execution.folder), composed.sweep.name, 1
    while folder.exists():
        n += 1
        folder = Path(f"{composed.execution.folder}-{n}")
    return [] if n == 1 else [f"sweep.name={name}-{n}", f"sweep.dir={folder}"]


def _check_input(composed: Composed) -> None:
    """Refuse data and models that cannot be used, before anything is made or loaded."""
    from lora_lab.planner.device import device_kind
    from lora_lab.worker.preflight import check_runs, points_to_check

    device_kind(composed.execution.device)
    check_runs(points_to_check(composed.sweep), composed.execution.device)


def _script(composed: Composed) -> str:
    if composed.execution.launcher.name != "slurm":
        raise ConfigError(
            f"--dry-run shows Slurm's script; launcher={composed.execution.launcher.name} has none. "
            "For what a sweep would take, use `lora-lab plan`."
        )
    from lora_lab.launch.slurm import script

    return script(composed.execution)


def _begin(composed: Composed, console: Console) -> None:
    """Start the workers and leave them alone."""
    from lora_lab.launch.follow import begin
    from lora_lab.launch.launcher import launcher_for

    launcher = launcher_for(composed.execution)
    try:
        if not launcher.survives:
            raise ConfigError("launcher.follow=false: these workers end with this command; leave it out.")
        begin(composed.execution, launcher, say=lambda text: console.print(text, soft_wrap=True))
    finally:
        launcher.close()
    console.print(f"See how it is with: {typed(['lora-lab', 'status', composed.execution.folder])}", soft_wrap=True)
    console.print("The sweep's command without launcher.follow=false follows them, and prints the table.")


def _train(composed: Composed, study: Study, console: Console, command: str) -> None:
    from lora_lab.cli.progress import Progress
    from lora_lab.launch import follow, local
    from lora_lab.study.lines import file_lock
    from lora_lab.study.state import CANCELLED
    from lora_lab.tracking import Untracked, open_tracker

    sweep, execution = composed.sweep, composed.execution
    counts = study.counts()
    _say_store(composed, console)
    stack = contextlib.ExitStack()
    # One process sends what all workers write; a second one would send it twice.
    mine = stack.enter_context(file_lock(Path(execution.folder) / ".tracking.lock", wait=False))
    tracker = open_tracker(sweep, execution) if mine else Untracked()
    tracker.start()
    try:
        with Progress(console, counts.planned_runs, counts.runs, paths=sweep.space.paths) as progress:
            if counts.runs:
                progress.say(f"going on: {counts.runs} of {counts.planned_runs} runs are settled")
            if execution.launcher.name == "local" and execution.launcher.workers == 1:
                finished = local.run(sweep, execution, study, progress, say=progress.say, settled=progress.set_done)
            else:
                finished = follow.run(execution, study, progress, say=progress.say, settled=progress.set_done)
    finally:
        lag = tracker.close()
        stack.close()
    if lag:
        console.print(
            f"MLflow has not got {lag.runs} runs yet ({lag.error or 'it was too slow'}); nothing is lost, "
            "the same command sends them.",
            style="yellow",
            soft_wrap=True,
        )
    done = study.counts()
    if done.halted == CANCELLED:
        raise Interrupted(f"Cancelled; {done.runs} of {done.planned_runs} runs are settled. Go on with: {command}")
    if done.halted is not None:
        raise RunFailed(
            f"The sweep was stopped: {done.halted}. {done.runs} of {done.planned_runs} runs are settled. Go on with: "
            f"{command}; train the failed ones again with: {typed(['lora-lab', 'retry', execution.folder])}"
        )
    if not finished:
        raise Interrupted(
            f"Interrupted; {done.runs} of {done.planned_runs} runs are settled and the others are saved. "
            f"Go on with: {command}"
        )


def _catch_up(composed: Composed, console: Console) -> None:
    """Send what an earlier start could not: a finished sweep may still owe runs to MLflow."""
    from lora_lab.tracking import open_tracker

    tracker = open_tracker(composed.sweep, composed.execution)
    tracker.start()
    lag = tracker.close()
    if lag:
        console.print(f"MLflow has not got {lag.runs} runs yet ({lag.error}).", style="yellow", soft_wrap=True)


def _say_store(composed: Composed, console: Console) -> None:
    from lora_lab.tracking import redact, resolve_uri, ui_command

    console.print(f"sweep   {composed.execution.folder}", soft_wrap=True)
    if composed.sweep.design is not None:
        console.print(f"design  {composed.sweep.design.sentence}", soft_wrap=True)
        for line in composed.sweep.design.aliases:
            console.print(f"        aliased: {line}", soft_wrap=True)
    if composed.execution.tracking.name == "mlflow":
        uri = resolve_uri(composed.execution.tracking)
        console.print(f"MLflow  {redact(uri)}   (open it with: {redact(typed(ui_command(uri)))})", soft_wrap=True)


def _finish(composed: Composed, console: Console) -> None:
    """Print the summary; complain about runs that failed."""
    from lora_lab.analysis import load_results
    from lora_lab.cli.summary import print_summary
    from lora_lab.spec import Outcome
    from lora_lab.tracking import redact, resolve_uri, ui_command

    folder = Path(composed.execution.folder)
    tracked = composed.execution.tracking.name == "mlflow"
    ui = redact(typed(ui_command(resolve_uri(composed.execution.tracking)))) if tracked else None
    print_summary(console, folder, ui)
    outcomes = load_results(folder)["outcome"]
    failed = int(outcomes.isin([str(Outcome.FAILED), str(Outcome.OUT_OF_MEMORY)]).sum())
    if failed:
        look = typed(["lora-lab", "report", str(folder), "--csv"])
        raise RunFailed(f"{failed} of {len(outcomes)} runs failed; see above, or: {look}")
