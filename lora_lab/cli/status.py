"""``lora-lab status``: how far a sweep is, what runs now, what is best so far."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.cli.state import search_lines, status_tree

HELP = "how far a sweep is: runs by outcome, what runs now, the best so far, time left"
EXAMPLE = "lora-lab status rank_alpha --json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``status``."""
    parser.add_argument(
        "sweep", nargs="?", help="a sweep's name in runs/, or its folder (default: the newest in runs/)"
    )
    parser.add_argument("--json", action="store_true", help="the same for a script")


def run(args: argparse.Namespace) -> int:
    """Print the status. Where the study's log cannot be read, a warning says why, and the results are the folder's.

    Raises:
        SweepFolderError: no such sweep, or a damaged record of one.
        CheckpointError: ``sweep.json`` is torn; or a result file, where the results are the folder's.
    """
    from lora_lab.analysis import find_sweep, read_sweep

    folder = find_sweep(args.sweep)
    record = read_sweep(folder)
    tree = status_tree(record)
    if args.json:
        print(json.dumps(tree, indent=1, allow_nan=False))
        return 0
    from lora_lab.cli.summary import resume_command

    _screen(tree, resume_command(record))
    return 0


def _screen(tree: Mapping[str, Any], resume: str) -> None:
    from rich.console import Console

    from lora_lab.analysis.naming import OUTCOME_WORDS, point_name
    from lora_lab.cli.progress import duration
    from lora_lab.cli.summary import say

    console = Console()
    more = f" and {len(tree['workers']) - 1} more" if len(tree["workers"]) > 1 else ""
    by = f" by {tree['worker']}{more}" if tree["worker"] else ""
    say(console, f"Sweep {tree['sweep']} in {tree['folder']}: {tree['state']}{by}", style="bold")
    for line in job_lines(tree["jobs"]):
        say(console, line)
    said = [f"{count} {OUTCOME_WORDS[outcome]}" for outcome, count in tree["outcomes"].items()]
    outcomes = f" ({', '.join(said)})" if said else ""
    trials = f"{tree['trials']} of {tree['planned_trials']} trials have results"
    say(console, f"{tree['settled_runs']} of {tree['planned_runs']} runs settled{outcomes}; {trials}")
    for line in search_lines(tree):
        say(console, line)
    for run in tree["active"]:
        of = "" if run["total_steps"] is None else f"/{run['total_steps']}"
        numbers = [
            f"{name} {run[key]:.3f}"
            for name, key in (("loss", "loss"), ("eval loss", "eval_loss"))
            if run[key] is not None
        ]
        ago = [f"{duration(time.time() - run['updated'])} ago"] if run["updated"] is not None else []
        point = f"  {point_name(run['point'])}" if run["point"] else ""
        say(console, f"  {run['run']}{point}  {run['state']}  step {run['step']}{of}  {', '.join([*numbers, *ago])}")
    if tree["best"] is not None:
        say(console, f"Best so far: {best_text(tree['best'])}")
    if tree["eta_seconds"] is not None:
        say(console, f"About {duration(tree['eta_seconds'])} left")
    if tree["halted"]:
        say(console, f"Stopped: {tree['halted']}")
    if tree["state"] == "paused":
        say(console, f"Go on with: {resume}")


MOST_JOBS = 8
"""Jobs that are shown one by one; of more, only how many there are in each state."""


def job_lines(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a launcher started: each job's state and log, or how many there are."""
    if len(jobs) <= MOST_JOBS:
        return [f"  {job['launcher']} {job['id']}  {job['state']}  {job['log']}" for job in jobs]
    counts = Counter(job["state"] for job in jobs)
    return [f"  {len(jobs)} jobs: " + ", ".join(f"{n} {state}" for state, n in counts.items())]


def best_text(best: Mapping[str, Any]) -> str:
    """``r=8 alpha_over_r=1: eval_loss 1.3013 ± 0.0083 over 2 seeds (base model 2.9140)``."""
    from lora_lab.analysis.naming import point_name
    from lora_lab.analysis.rendering import digits_for

    std = math.nan if best["std"] is None else best["std"]
    digits = digits_for(std, abs(best["mean"]))
    over = f" ± {std:.{digits}f} over {best['n']} seeds" if best["n"] > 1 else ""
    base = "" if best["base"] is None else f" (base model {best['base']:.{digits}f})"
    return f"{point_name(best['point']) or 'the base settings'}: {best['metric']} {best['mean']:.{digits}f}{over}{base}"
