"""``lora-lab train``: one run (or, with ``--multirun``, several one after another) by Hydra's own conventions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.cli.commands import typed
from lora_lab.errors import ConfigError, Interrupted, RunFailed

if TYPE_CHECKING:
    from lora_lab.config.app import Job
    from lora_lab.spec import RunResult

HELP = "train one run by Hydra's conventions; an adapter in PEFT's format at the end"
EXAMPLE = "lora-lab train method.r=16 optimizer.lr=1e-3 budget.steps=100"

COMPLETION = """\
_lora_lab() {
    COMPREPLY=()
    [ "${COMP_WORDS[1]}" = train ] || return 0
    local word=${COMP_LINE##* }
    COMPREPLY=($(compgen -W "$(lora-lab train --shell-completion query "$COMP_LINE" 2> /dev/null)" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _lora_lab lora-lab
"""
"""For bash; zsh takes it after ``autoload -Uz bashcompinit && bashcompinit``."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, e.g. model=tiny method.r=4")
    parser.add_argument("-m", "--multirun", action="store_true", help="train every combination of values like r=4,8")
    parser.add_argument(
        "-c", "--cfg", choices=("job", "hydra", "all"), help="print the configuration and train nothing"
    )
    parser.add_argument("-p", "--package", metavar="KEY", help="with --cfg: this part of it only")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    parser.add_argument(
        "-i",
        "--info",
        nargs="?",
        const="all",
        choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        help="print what Hydra found, and train nothing",
    )
    parser.add_argument("--hydra-help", action="store_true", help="Hydra's own help")
    parser.add_argument(
        "-cd", "--config-dir", metavar="FOLDER", help="a folder of further options, FOLDER/model/….yaml"
    )
    parser.add_argument(
        "-sc",
        "--shell-completion",
        nargs="+",
        metavar="install=bash",
        help='tab completion: eval "$(lora-lab train --shell-completion install=bash)"',
    )


def run(args: argparse.Namespace) -> int:
    """Train, or print what the flags ask for.

    Raises:
        BadInput: a bad override, data set or model; nothing was trained.
        RunFailed: a run ended without a result; the other runs of a multirun were trained.
        Interrupted: Ctrl-C; the message says how to go on.
    """
    from lora_lab.config import app
    from lora_lab.spec import Outcome

    overrides = [*args.overrides, *_further(args.config_dir)]
    if args.shell_completion:
        return _complete(args.shell_completion)
    if args.cfg is None and (args.package or args.resolve):
        raise ConfigError("--package and --resolve belong to --cfg, as in: lora-lab train --cfg job --package method.")
    if args.cfg or args.info or args.hydra_help:
        app.show(overrides, *_flags(args))
        return 0
    failed: list[RunResult] = []

    def do(job: Job) -> None:
        result = train(job)
        if result.outcome is not Outcome.COMPLETED:
            failed.append(result)

    app.run_app(overrides, do, multirun=args.multirun)
    if failed:
        raise RunFailed(" ".join(f"{result.outcome}: {result.message or 'no reason given.'}" for result in failed))
    return 0


def train(job: Job) -> RunResult:
    """Train one run with its files in ``job.folder`` and say what came of it.

    Raises:
        BadInput: the data, the model or the folder cannot be used; nothing was loaded.
        Interrupted: Ctrl-C; a checkpoint is in the folder.
    """
    from rich.console import Console

    from lora_lab.cli.progress import Progress
    from lora_lab.files import write_json
    from lora_lab.tracking import Spool
    from lora_lab.worker.single import train_one
    from lora_lab.worker.tee import Tee

    console = Console(highlight=False, soft_wrap=True)
    try:
        with Progress(console, planned_runs=1, done_runs=0) as progress:
            recorder = Tee([Spool(job.folder, run_folder=lambda run: job.folder), progress])
            result = train_one(
                job.spec, job.folder, device=job.device, memory=job.memory, recorder=recorder, say=progress.say
            )
    except Interrupted as error:
        again = typed(["lora-lab", "train", *job.overrides, f"hydra.run.dir={job.folder}"])
        raise Interrupted(f"Interrupted; the checkpoint is kept. Go on with: {again}") from error
    write_json(job.folder / "result.json", result.to_tree())
    for line in outcome_lines(result, job.folder):
        console.print(line, markup=False)
    return result


def outcome_lines(result: RunResult, folder: Path) -> list[str]:
    """What came of a run, for people: losses in nats per token, and where the adapter lies."""
    lines: list[str] = []
    if result.eval_loss is not None:
        base = f"{result.base_eval_loss:.4f} -> " if result.base_eval_loss is not None else ""
        lines.append(f"eval loss    {base}{result.eval_loss:.4f}")
    if result.exact_match is not None:
        base = f"{result.base_exact_match:.3f} -> " if result.base_exact_match is not None else ""
        lines.append(f"exact match  {base}{result.exact_match:.3f}")
    before = dict(result.base_scores)
    for name, value in result.scores:
        error = dict(result.scores).get(f"{name}_stderr")
        if error is not None:
            base = f"{before[name]:.4f} -> " if name in before else ""
            lines.append(f"{name}  {base}{value:.4f} ± {error:.4f}")
    lines.append(f"steps        {result.steps}, {result.tokens:,} tokens, {result.seconds:.0f} s")
    if result.adapter is not None:
        lines.append(f"adapter      {folder / result.adapter}")
    lines.append(f"files        {folder}")
    return lines


def _further(folder: str | None) -> list[str]:
    """The override that adds a folder of config options."""
    if folder is None:
        return []
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(f"--config-dir: no folder {folder}.")
    return [f"hydra.searchpath=['file://{path}']"]


def _flags(args: argparse.Namespace) -> list[str]:
    flags: list[str] = []
    if args.cfg:
        flags += ["--cfg", args.cfg]
    if args.package:
        flags += ["--package", args.package]
    if args.resolve:
        flags += ["--resolve"]
    if args.info:
        flags += ["--info", args.info]
    if args.hydra_help:
        flags += ["--hydra-help"]
    return flags


def _complete(words: Sequence[str]) -> int:
    """Print the completion script, or (``query "$COMP_LINE"``) the completions of a command line."""
    from lora_lab.config import app

    if words[0] != "query":
        shell = words[0].removeprefix("install=")
        if shell not in ("bash", "zsh"):
            raise ConfigError(f"--shell-completion: bash and zsh are known, got {shell!r}.")
        sys.stdout.write(COMPLETION)
        return 0
    _, _, typed = " ".join(words[1:]).partition(" train")
    os.environ["COMP_LINE"] = f"lora-lab{typed}"
    app.complete()
    return 0
