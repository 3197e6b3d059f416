"""``lora-lab eval``: benchmark scores of adapters, runs and base models, many of them in one pass."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError

if TYPE_CHECKING:
    from lora_lab.bench.scores import Score
    from lora_lab.bench.targets import Target
    from lora_lab.spec import EvaluationSpec, ModelSpec

HELP = "score adapters, runs or a base model on benchmarks of lm-evaluation-harness"
EXAMPLE = (
    "lora-lab eval rank_alpha/t0000-s0 rank_alpha/t0003-s0 --tasks offline_arithmetic_2ds --limit 200\n"
    "  lora-lab eval ./some/peft/adapter model=smollm2_135m --tasks blimp_causative --task-data ./data --json\n"
    "  lora-lab eval base model=hf model.path=./my-model --tasks truthfulqa_mc1,truthfulqa_mc2"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="ADAPTER|RUN|base",
        help="an adapter's folder (PEFT's format), a run's folder or SWEEP/RUN, or base; and overrides like "
        "model=smollm2_135m, for a base model that the adapter does not name",
    )
    parser.add_argument("--tasks", required=True, metavar="A,B", help="lm-eval's tasks by name, or your own")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N documents of each task (default: all)")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question")
    parser.add_argument("--include-path", metavar="FOLDER", help="a folder of task YAML")
    parser.add_argument("--task-data", metavar="FOLDER", help="a folder of local copies of known tasks' data")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="answers generated at once")
    parser.add_argument("--no-base", action="store_true", help="leave out the base model")
    parser.add_argument("--no-record", action="store_true", help="write nothing to the runs' folders and MLflow")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Score everything named on one resident base model, and print a table.

    Raises:
        BadInput: a target, task or model that cannot be used, or targets of different base models.
        CheckpointError: an adapter that is torn or does not fit the base model.
    """
    from lora_lab.bench.finding import find
    from lora_lab.bench.targets import BASE, target
    from lora_lab.spec import EvaluationSpec

    words = [word for word in args.words if "=" not in word or Path(word).exists()]
    overrides = [word for word in args.words if word not in words]
    if not words:
        raise ConfigError("nothing to score: name an adapter's folder, a run, or base.")
    targets = [target(word) for word in dict.fromkeys(words)]
    if not args.no_base and all(one.name != BASE for one in targets):
        targets.insert(0, target(BASE))
    model, device = _base(targets, overrides)
    evaluation = EvaluationSpec(
        tasks=tuple(name for name in args.tasks.split(",") if name),
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        include_path=args.include_path,
        task_data=args.task_data,
        batch_size=args.batch_size,
    )
    if not evaluation.tasks:
        raise ConfigError("--tasks names no task. Try: --tasks offline_arithmetic_2ds.")
    find(evaluation)  # a wrong name costs no model
    scores = _score(targets, model, evaluation, device)
    recorded = [] if args.no_record else [_record(one, found) for one, found in zip(targets, scores, strict=True)]
    _print(args, model, targets, scores, recorded)
    return 0


def _base(targets: Sequence[Target], overrides: list[str]) -> tuple[ModelSpec, str]:
    """The base model: as the overrides say, else as the targets do; and the device."""
    from lora_lab.config.compose import composed_run, device_of, run_of
    from lora_lab.config.overrides import read_overrides
    from lora_lab.config.places import options
    from lora_lab.config.schema import RUN
    from lora_lab.spec import ModelSpec

    said = any(word.lstrip("+~").startswith(("model=", "model.")) for word in overrides)
    named = {one.model: one.name for one in targets if one.model is not None}
    if len(named) > 1 and not said:
        (first, a), (second, b) = list(named.items())[:2]
        raise ConfigError(
            f"{a} was trained on {_called(first)} and {b} on {_called(second)}: score them by a command each, "
            "or say model=… if it is one model."
        )
    own = next(iter(named), None)
    if own is not None and not said and not isinstance(own, ModelSpec):
        known = own in options("model")
        overrides = [*overrides, *([f"model={own}"] if known else ["model=hf", f"model.path={own}"])]
    tree = composed_run(read_overrides(RUN, overrides))
    spec = own if isinstance(own, ModelSpec) and not said else run_of(tree).model
    return spec, device_of(tree)


def _called(model: ModelSpec | str) -> str:
    return model if isinstance(model, str) else f"{model.name} ({model.dtype})"


def _score(targets: Sequence[Target], model: ModelSpec, evaluation: EvaluationSpec, device: str) -> list[list[Score]]:
    from lora_lab import models
    from lora_lab.bench.scores import benchmark
    from lora_lab.methods import load
    from lora_lab.packing.paths import Mount
    from lora_lab.worker.bases import device_name

    base = models.load(model, device_name(device))
    lanes = [None if one.adapter is None else load(one.adapter, base) for one in targets]
    mount = Mount(base)
    for lane in lanes:
        if lane is not None:
            mount.mount(lane)
    return benchmark(mount, lanes, evaluation)


def _record(one: Target, scores: Sequence[Score]) -> list[str]:
    """Keep the scores with the run, in its folder and in MLflow; which stores have them."""
    if one.run is None:
        return []
    from lora_lab.bench.scores import flat
    from lora_lab.files import read_json, write_json
    from lora_lab.tracking.scores import record_scores

    result = read_json(one.run / "result.json")
    path = one.run / "scores.json"
    found = flat(scores)
    write_json(path, (read_json(path) if path.is_file() else {}) | found)
    folder = one.run.absolute()
    return record_scores(folder.parent.parent, folder.name, found, int(result["steps"]))


def _print(
    args: argparse.Namespace,
    model: ModelSpec,
    targets: Sequence[Target],
    scores: Sequence[Sequence[Score]],
    recorded: Sequence[Sequence[str]],
) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    stores = recorded or [[] for _ in targets]
    if args.json:
        rows: list[dict[str, Any]] = [
            {
                "name": one.name,
                "adapter": None if one.adapter is None else str(one.adapter),
                "scores": [asdict(score) for score in found],
                "recorded": list(told),
            }
            for one, found, told in zip(targets, scores, stores, strict=True)
        ]
        print(json.dumps({"model": model.name, "dtype": model.dtype, "limit": args.limit, "targets": rows}, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    columns = [(one.name, found) for one, found in zip(targets, scores, strict=True)]
    table = Table("task", "n", *(name for name, _ in columns), box=None, pad_edge=False)
    for row in zip(*(found for _, found in columns), strict=True):
        table.add_row(row[0].name, str(row[0].n), *map(_shown, row))
    console.print(f"{model.name} ({model.dtype})", markup=False)
    console.print(table)
    if any(score.ties for found in scores for score in found):
        console.print("(t ties): documents of which two answers were exactly as likely; they count as wrong")
    for store in sorted({store for told in stores for store in told}):
        console.print(f"recorded in {store}", markup=False)


def _shown(score: Score) -> str:
    error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
    return f"{score.value:.4f}{error}" + (f" ({score.ties} ties)" if score.ties else "")
