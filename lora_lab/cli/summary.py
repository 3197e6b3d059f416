"""What a sweep found, on one screen: the table, the base model, the best configuration, what to do next.

The last thing ``lora-lab sweep`` prints; ``lora-lab report`` is made of the same parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.analysis import (
    Best,
    SweepRecord,
    ablation_table,
    best_configuration,
    consistency,
    read_results,
    read_sweep,
    results_frame,
)
from lora_lab.analysis.front import front_grid
from lora_lab.analysis.grouping import base_metric
from lora_lab.analysis.naming import OUTCOME_WORDS
from lora_lab.cli.commands import typed
from lora_lab.cli.state import search_lines, status_tree
from lora_lab.spec import SETTLED, Outcome

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from lora_lab.analysis.rendering import Grid

MOST_TROUBLES = 5
"""Runs that ended badly and are named one by one; the rest are counted."""


def print_summary(console: Console, folder: Path, mlflow_ui: str | None = None) -> None:
    """Print the final screen of the sweep in ``folder``; ``mlflow_ui`` is the command that opens its MLflow store.

    Raises:
        SweepFolderError: there is no sweep in ``folder``.
        CheckpointError: a result file is torn.
    """
    record = read_sweep(folder)
    results = read_results(folder)
    say(console, "")
    if not results:
        say(console, f"Sweep {record.name}: none of its {record.planned_runs} runs has a result yet.")
        for line in search_lines(status_tree(record)):
            say(console, line)
        say_commands(console, next_commands(record, 0, mlflow_ui))
        return
    frame = results_frame(record, results)
    best = best_configuration(frame)
    say(console, headline(record, frame), style="bold")
    for line in troubles(frame):
        say(console, line, style="yellow")
    for line in search_lines(status_tree(record)):
        say(console, line)
    if (front := front_grid(frame)) is not None:
        say(console, "")
        print_grid(console, front)
    if best is not None:
        say(console, "")
        print_grid(console, ablation_table(frame).grid)
        for line in best_lines(record, frame, best):
            say(console, line)
        say(console, consistency(frame).sentence)
    settled = int(frame["outcome"].isin([str(o) for o in SETTLED]).sum())
    say_commands(console, next_commands(record, settled, mlflow_ui))


def headline(record: SweepRecord, frame: pd.DataFrame) -> str:
    """``Sweep rank_alpha: 18 of 18 runs settled (16 completed, 2 diverged), in runs/rank_alpha``."""
    counts = frame["outcome"].value_counts()
    said = ", ".join(f"{counts[o]} {OUTCOME_WORDS[o]}" for o in map(str, Outcome) if o in counts)
    settled = sum(int(counts[o]) for o in map(str, SETTLED) if o in counts)
    return f"Sweep {record.name}: {settled} of {record.planned_runs} runs settled ({said}), in {record.folder}"


def troubles(frame: pd.DataFrame) -> list[str]:
    """One line for every run that did not complete, with its message."""
    bad = frame[~frame["outcome"].isin([str(Outcome.COMPLETED), str(Outcome.PRUNED), str(Outcome.PREEMPTED)])]
    lines = []
    for run, outcome, message in zip(bad["run"], bad["outcome"], bad["message"], strict=True):
        reason = message.splitlines()[0] if isinstance(message, str) and message else "no message was left"
        lines.append(f"{run} {OUTCOME_WORDS[outcome]}: {reason}")
    more = len(lines) - MOST_TROUBLES
    return lines if more <= 0 else [*lines[:MOST_TROUBLES], f"… and {more} more like these (lora-lab report --csv)"]


def best_lines(record: SweepRecord, frame: pd.DataFrame, best: Best) -> list[str]:
    """The best configuration with its scores beside the base model's, and where its adapter lies."""
    runs = frame[frame["trial"].isin(best.configuration.trials) & (frame["outcome"] == str(Outcome.COMPLETED))]
    scores = []
    for metric in dict.fromkeys([best.metric, "eval_loss", "exact_match"]):
        values = runs[metric].dropna()
        if len(values):
            column = base_metric(metric)
            base = frame[column].dropna() if column in frame else values.head(0)
            beside = f" (base model {base.mean():.3f})" if len(base) else ""
            scores.append(f"{metric} {values.mean():.3f}{beside}")
    lines = [f"Best: {best.configuration.name or 'the base settings'}: {', '.join(scores)}"]
    if best.adapter is not None:
        seeds = f" (seed {best.seed}, the best of {best.configuration.n})" if best.configuration.n > 1 else ""
        lines.append(f"Its adapter: {record.at(best.adapter)}{seeds}")
    return lines


def next_commands(record: SweepRecord, settled: int, mlflow_ui: str | None) -> list[tuple[str, str]]:
    """Commands worth trying now, each with what it does."""
    again = resume_command(record)
    commands = []
    if settled < record.planned_runs:
        commands.append((again, "go on where it stopped"))
    if settled:
        commands.append((typed(["lora-lab", "report", called(record)]), "consistency; --csv, --markdown, --json"))
    if mlflow_ui is not None:
        commands.append((mlflow_ui, "every loss curve, in MLflow"))
    if settled >= record.planned_runs:
        more = max(record.repeats + 1, 2 * record.repeats)
        commands.append((f"{again} sweep.repeats={more}", "more seeds, to be surer"))
    return commands


def resume_command(record: SweepRecord) -> str:
    """The command that goes on with the sweep: by its own resolved configuration where that lies in its folder."""
    config = record.folder / "config.yaml"
    return typed(["lora-lab", "sweep", str(config) if config.is_file() else called(record)])


def called(record: SweepRecord) -> str:
    """How the command line names the sweep from here: its name in ``runs/``, or its folder."""
    usual = Path("runs") / record.folder.name
    same = usual.is_dir() and record.folder.is_dir() and usual.samefile(record.folder)
    return record.folder.name if same else str(record.folder)


def print_grid(console: Console, grid: Grid) -> None:
    """A table as the console can show it: set and in colour on a terminal, plain aligned text in a pipe."""
    if console.is_terminal:
        console.print(grid.rich(console.width))
    else:
        say(console, grid.plain())


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a sentence: wrapped at words on a terminal, one line in a pipe; never read as markup."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def say_commands(console: Console, commands: Iterable[tuple[str, str]]) -> None:
    """Print commands under one another, never broken over lines."""
    commands = list(commands)
    if not commands:
        return
    say(console, "\nNext:")
    width = max(len(command) for command, _ in commands)
    beside = all(width + len(what) + 6 <= console.width for _, what in commands)
    for command, what in commands:
        line = f"  {command:<{width}}  # {what}" if beside else f"  # {what}\n  {command}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
