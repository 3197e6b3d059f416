"""``lora-lab workers``: the jobs that a launcher started for a sweep; more of them, or fewer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import ConfigError

if TYPE_CHECKING:
    from lora_lab.launch.launcher import Job
    from lora_lab.spec import Execution

HELP = "the jobs that a launcher started for a sweep: list them, add some, stop some"
EXAMPLE = "lora-lab workers add 8 rank_alpha launcher.partition=short"

ACTIONS = ("list", "add", "stop")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``workers``."""
    parser.add_argument("action", choices=ACTIONS, help="list; add N workers; stop the N newest jobs, or --job ID")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="N | SWEEP | launcher.key=value",
        help="how many; a sweep's name in runs/ or its folder (default: the newest in runs/); other settings of the "
        "launcher than the sweep was begun with",
    )
    parser.add_argument("--job", action="append", default=[], metavar="ID", help="stop this job (several times: these)")
    parser.add_argument("--json", action="store_true", help="list for a script")


def run(args: argparse.Namespace) -> int:
    """Do it.

    Raises:
        ConfigError: no number, or no such job.
        SweepFolderError: no such sweep.
        LauncherError: the scheduler cannot be reached, or refuses.
    """
    from lora_lab.analysis import find_sweep
    from lora_lab.launch.jobs import Jobs, execution_with

    settings = [word for word in args.words if "=" in word]
    numbers = [word for word in args.words if word.isdecimal()]
    names = [word for word in args.words if word not in settings and word not in numbers]
    if len(names) > 1 or len(numbers) > 1:
        raise ConfigError(f"workers {args.action}: at most one number and one sweep, got: {' '.join(names + numbers)}.")
    execution = execution_with(find_sweep(names[0] if names else None), settings)
    if args.action == "add":
        return _add(execution, _count(args.action, numbers))
    jobs = list(Jobs(Path(execution.folder)).latest().values())
    if args.action == "list":
        return _list(execution, jobs, as_json=args.json)
    return _stop(execution, jobs, args.job, numbers)


def _add(execution: Execution, workers: int) -> int:
    from lora_lab.launch.choosing import launcher_for
    from lora_lab.launch.follow import add

    launcher = launcher_for(execution, tied=False)
    try:
        each = execution.launcher.workers_a_job
        add(execution, launcher, -(-workers // each), say=print)
    finally:
        launcher.close()
    return 0


def _list(execution: Execution, jobs: Sequence[Job], *, as_json: bool) -> int:
    from lora_lab.launch.jobs import described

    found = described(execution, jobs)
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    if not found:
        print("No launcher started any. A worker is added with: lora-lab workers add 1")
    for job in found:
        count = "1 worker" if job["workers"] == 1 else f"{job['workers']} workers"
        print(f"{job['place']:>3}  {job['state']:<8} {job['launcher']} {job['id']}, {count}, log {job['log']}")
    return 0


def _stop(execution: Execution, jobs: Sequence[Job], ids: Sequence[str], numbers: Sequence[str]) -> int:
    from lora_lab.launch.jobs import alive, stop

    unknown = sorted(set(ids) - {job.id for job in jobs})
    if unknown:
        raise ConfigError(f"no job {', '.join(unknown)} in {execution.folder}; see `lora-lab workers list`.")
    if ids:
        chosen = [job for job in jobs if job.id in ids]
    else:
        count = _count("stop", numbers)
        chosen = alive(execution, jobs)[-count:] if count else []
    stop(execution, chosen)
    print(f"{len(chosen)} jobs save what they train and end: {', '.join(job.id for job in chosen) or 'none'}")
    return 0


def _count(action: str, numbers: Sequence[str]) -> int:
    if not numbers or int(numbers[0]) < 1:
        raise ConfigError(f"workers {action}: say how many, e.g. lora-lab workers {action} 2.")
    return int(numbers[0])
