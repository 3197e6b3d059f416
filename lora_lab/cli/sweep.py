"""``lora-lab sweep``: run a sweep, or go on with it; the same command does both."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.cli.commands import typed
from lora_lab.errors import ConfigError, Interrupted, RunFailed

if TYPE_CHECKING:
    from rich.console import Console

    from lora_lab.config import Composed
    from lora_lab.study import Study
    from lora_lab.tracking import Lag

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

    overrides = list(args.overrides)
    composed = compose_sweep(args.sweep, overrides)
    if args.fresh:
        overrides += _fresh(composed)
        composed = compose_sweep(args.sweep, overrides)
    console = Console(highlight=False)
    if args.dry_run:
        print(_script(composed))
        return 0
    carry_out(composed, console, typed(["lora-lab", "sweep", args.sweep, *overrides]))
    if composed.execution.launcher.follow:
        _finish(composed, console)
    return 0


def carry_out(composed: Composed, console: Console, command: str) -> None:
    """Train what is left of a sweep; ``command`` is the one that goes on with it.

    Raises:
        BadInput: the data, model, folder or a store cannot be used; nothing was trained.
        RunFailed: the sweep was stopped by failures.
        Interrupted: Ctrl-C.
    """
    from lora_lab.files import write_text
    from lora_lab.study import Study
    from lora_lab.tracking import check as check_tracking
    from lora_lab.worker.capacity import Capacity
    from lora_lab.worker.figures import figures_on
    from lora_lab.worker.preflight import check_folder

    folder = Path(composed.execution.folder)
    check_tracking(composed.execution.tracking)
    if not (folder / "sweep.json").exists():
        _check_input(composed)
    check_folder(folder)
    execution = composed.execution
    figures, hopeless = figures_on(execution.device, execution.device_memory), Capacity.of(execution).refusal
    with Study.open(composed.sweep, composed.execution, figures, hopeless) as study:
        write_text(folder / "config.yaml", composed.yaml)
        counts = study.counts()
        left = counts.planned_runs - counts.runs
        if left > 0:
            _check_input(composed)
            if not execution.launcher.follow:
                _begin(composed, console)
                return
            _train(composed, study, console, command)
        else:
            console.print(f"Nothing is left to do: all {counts.planned_runs} runs are settled.", soft_wrap=True)
            _catch_up(composed, console)


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
    check_runs(points_to_check(composed.sweep), composed.execution.device, composed.execution.launcher)


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
    from lora_lab.launch.choosing import launcher_for
    from lora_lab.launch.follow import begin

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
    from lora_lab.launch.uploading import Uploading
    from lora_lab.study.state import CANCELLED

    sweep, execution = composed.sweep, composed.execution
    counts = study.counts()
    _say_store(composed, console)
    uploading = Uploading(sweep, execution) if execution.tracking.name != "none" else None
    if uploading is not None:
        uploading.start()
    finished = False
    try:
        with Progress(console, counts.planned_runs, counts.runs, paths=sweep.space.paths) as progress:
            if counts.runs:
                progress.say(f"going on: {counts.runs} of {counts.planned_runs} runs are settled")
            if execution.launcher.name == "local" and execution.launcher.workers == 1:
                finished = local.run(sweep, execution, study, progress, say=progress.say, settled=progress.set_done)
            else:
                finished = follow.run(execution, study, progress, say=progress.say, settled=progress.set_done)
    finally:
        lag = uploading.close(report=finished) if uploading is not None else None
    if lag:
        _say_lag(lag, execution.folder, console)
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
    from lora_lab.cli.sync import predicted, write_report
    from lora_lab.study.lines import file_lock
    from lora_lab.tracking import open_tracker

    folder = Path(composed.execution.folder)
    if composed.execution.tracking.name == "none":
        return
    with file_lock(folder / ".tracking.lock", wait=False) as mine:
        if not mine:  # another process is sending it
            return
        best = write_report(folder)
        lag = open_tracker(composed.sweep, composed.execution, predict=predicted).close(best=best)
    if lag:
        _say_lag(lag, str(folder), console)


def _say_lag(lag: Lag, folder: str, console: Console) -> None:
    console.print(
        f"MLflow has not got {lag.what} yet ({lag.error or 'it was too slow'}); nothing is lost, "
        f"the same command sends it, and so does: {typed(['lora-lab', 'sync', folder])}",
        style="yellow",
        soft_wrap=True,
    )


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
    from lora_lab.analysis import load_results, read_results
    from lora_lab.cli.summary import print_summary
    from lora_lab.tracking import redact, resolve_uri, ui_command

    folder = Path(composed.execution.folder)
    tracked = composed.execution.tracking.name == "mlflow"
    ui = redact(typed(ui_command(resolve_uri(composed.execution.tracking)))) if tracked else None
    print_summary(console, folder, ui)
    if not read_results(folder):
        raise RunFailed("no point of the space could be trained; the reasons stand above.")
    failed, runs = failures(folder), len(load_results(folder))
    if failed:
        look = typed(["lora-lab", "report", str(folder), "--csv"])
        raise RunFailed(f"{failed} of {runs} runs failed; see above, or: {look}")


def failures(folder: Path) -> int:
    """How many runs of the sweep in ``folder`` ended FAILED or OUT_OF_MEMORY."""
    from lora_lab.analysis import load_results
    from lora_lab.spec import Outcome

    outcomes = load_results(folder)["outcome"]
    return int(outcomes.isin([str(Outcome.FAILED), str(Outcome.OUT_OF_MEMORY)]).sum())
