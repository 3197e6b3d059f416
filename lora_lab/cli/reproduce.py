"""``lora-lab reproduce``: run an article's claims as sweeps, and say of each whether it holds here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.cli.commands import typed
from lora_lab.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from lora_lab.article import Reproduction, Section
    from lora_lab.config import Composed

HELP = "run an article's claims as sweeps, and say of each: supported, contradicted or inconclusive here"
EXAMPLE = (
    "lora-lab reproduce --budget smoke                  all sections on a random model, in minutes\n"
    "  lora-lab reproduce --dry-run                       what the small budget would run, and for how long\n"
    "  lora-lab reproduce 1 Q5 --md article.md            two sections on SmolLM2-135M; the same command goes on\n"
    "  lora-lab reproduce Q2 --data real                  Alpaca and sums from the folder that LORA_LAB_DATA names\n"
    "  lora-lab reproduce --budget full --model ./llama   the article's own settings; needs a GPU"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``reproduce``."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="SECTION",
        help="sections, such as 1, Q5 or Q5-overfit (default: all), and key=value",
    )
    parser.add_argument(
        "--model", help="a shipped model, a hub id or a folder (default: smollm2_135m; in full llama2_7b)"
    )
    parser.add_argument("--data", help="taskmix (default), an Alpaca file, a hub id, a folder, or real: $LORA_LAB_DATA")
    parser.add_argument("--budget", choices=("smoke", "small", "full"), default="small", help="how much is trained")
    parser.add_argument("--dir", type=Path, help="where the runs lie (default: runs/article-BUDGET)")
    parser.add_argument("--md", metavar="FILE", type=Path, help="write all that was found there so far as Markdown")
    parser.add_argument("--json", action="store_true", help="print the evidence instead of tables")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and the time it takes; train nothing")


def run(args: argparse.Namespace) -> int:
    """Run the sections' sweeps, judge them, and write what was found.

    Raises:
        BadInput: an unknown section, or data or a model that cannot be used; nothing was trained.
        RunFailed: runs of some sweeps failed; everything else was judged.
        Interrupted: Ctrl-C; the same command goes on.
    """
    from rich.console import Console

    from lora_lab.article import page, screen, sections
    from lora_lab.files import write_text

    chosen = sections([word for word in args.words if "=" not in word])
    job, command = _asked(args), _command(args)
    console = Console(highlight=False, stderr=args.json)
    sweeps = job.to_train(chosen)
    _show_plan(console, sweeps)
    if args.dry_run:
        return 0
    failed: list[str] = []
    for section in chosen:
        failed += _train(job, section, sweeps, console, command)
        tree = job.judge(section, command, lambda line: console.print(line, style="yellow", soft_wrap=True))
        if not args.json:
            console.print(screen(section, tree), markup=False, soft_wrap=True)
    evidence = job.evidence()
    if args.md is not None:
        write_text(args.md, page(evidence, sections()))
        console.print(f"{args.md} has {len(evidence['sections'])} sections", soft_wrap=True)
    if args.json:
        print(json.dumps(evidence, indent=1, allow_nan=False))
    if failed:
        raise RunFailed(f"runs failed in {', '.join(failed)}; everything else was judged. See: lora-lab report FOLDER.")
    return 0


def _asked(args: argparse.Namespace) -> Reproduction:
    from lora_lab.article import Reproduction
    from lora_lab.article.budgets import chosen_data

    data = chosen_data(args.data)
    others = [Path(args.model).name] if args.model else []
    others += [] if data == "taskmix" else [Path(data).stem]
    folder = args.dir or Path("runs") / "-".join(["article", args.budget, *others])
    overrides = tuple(word for word in args.words if "=" in word)
    return Reproduction(args.budget, folder, data, args.model, overrides)


def _command(args: argparse.Namespace) -> str:
    flags = (("--budget", args.budget), ("--model", args.model), ("--data", args.data), ("--md", args.md))
    return typed(["lora-lab", "reproduce", *args.words, *[w for name, v in flags if v for w in (name, str(v))]])


def _show_plan(console: Console, sweeps: Mapping[str, Composed]) -> None:
    from lora_lab.analysis.rendering import Grid
    from lora_lab.article.costs import costs_of
    from lora_lab.cli.summary import print_grid

    costs = costs_of({name: (one.sweep, Path(one.execution.folder)) for name, one in sweeps.items()})
    rows = [
        (
            cost.name,
            str(cost.runs),
            str(cost.settled),
            "–" if cost.steps is None else f"{cost.steps:,}",
            "–" if cost.seconds is None else f"{cost.seconds / 60:.1f}",
        )
        for cost in costs
    ]
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    total = ("in all", str(sum(c.runs for c in costs)), str(sum(c.settled for c in costs)))
    minutes = f"{sum(known) / 60:.1f}" if len(known) == len(costs) else f"{sum(known) / 60:.1f} and more"
    footer = (*total, f"{sum(c.steps or 0 for c in costs):,}", minutes)
    head = ("sweep", "runs", "settled", "steps to go", "minutes to go, about")
    print_grid(console, Grid(("plan",), head, tuple(rows), footer=footer))


def _train(
    job: Reproduction, section: Section, sweeps: Mapping[str, Composed], console: Console, command: str
) -> Sequence[str]:
    """Train what is left of a section; the sweeps of which runs failed."""
    from lora_lab.cli.sweep import carry_out, failures
    from lora_lab.study.control import Control

    failed = []
    for part in job.trained(section):
        folder = Path(sweeps[part.name].execution.folder)
        carry_out(sweeps[part.name], console, command)
        if failures(folder):
            failed.append(part.name)
        if not part.adapters:
            with Control(folder) as control:
                control.prune_files(1)
    return failed
