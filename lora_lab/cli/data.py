"""``lora-lab data``: what a data set looks like to the model, before anything is trained on it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from lora_lab.data.surveying import Side, Survey

HELP = "look at a data set: lengths, what is learned, what is cut, skipped or repeated"
EXAMPLE = "lora-lab data model=smollm2_135m data=alpaca data.path=train.jsonl --examples 2"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, as for a single run")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="training examples to show (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the survey; only the model's tokenizer is loaded.

    Raises:
        DataError: the data set cannot be used.
    """
    from rich.console import Console

    from lora_lab import data, models
    from lora_lab.config import compose_run

    spec = compose_run(args.overrides)
    found = data.survey(
        spec.data.at_seed(spec.seed),
        models.load_tokenizer(spec.model),
        models.cache_folder(),
        shown=max(0, args.examples),
    )
    if args.json:
        print(json.dumps(found.to_tree(), indent=1))
    else:
        side = "end" if spec.data.truncate == "right" else "beginning"
        _print(Console(highlight=False, soft_wrap=True, markup=False), found, spec.data.max_length, side)
    return 0


def _print(console: Console, found: Survey, max_length: int, side: str) -> None:
    for name, numbers in (("train", found.train), ("held out", found.evaluation)):
        _print_side(console, name, numbers, max_length, side)
    if found.packed_rows is not None:
        share = found.train.tokens / (found.packed_rows * max_length)
        console.print(f"packed: {found.packed_rows:,} rows of {max_length} tokens, {share:.1%} full")
    if found.duplicates:
        console.print(f"duplicates: {found.duplicates:,} training examples equal a held-out one", style="yellow")
    if found.skipped:
        console.print(f"skipped: {found.skipped:,} rows", style="yellow")
        for line in found.told:
            console.print(f"  {line}")
        if found.skipped > len(found.told):
            console.print(f"  … and {found.skipped - len(found.told):,} more")
    for i, runs in enumerate(found.shown, start=1):
        console.print(f"\nexample {i} (what is learned stands in ⟦ ⟧)", style="bold")
        for text, learned in runs:
            shown = "".join(sign if sign.isprintable() or sign == "\n" else "·" for sign in text)
            console.print(f"⟦{shown}⟧" if learned else shown, style="green" if learned else None, end="")
        console.print()


def _print_side(console: Console, name: str, side: Side, max_length: int, cut: str) -> None:
    console.print(
        f"{name}: {side.examples:,} examples, {side.tokens:,} tokens, {side.supervised_share:.1%} of them learned; "
        f"{side.shortest} to {side.longest} tokens each, median {side.median:g}"
    )
    most = max(count for _, _, count in side.histogram)
    for low, high, count in side.histogram:
        console.print(f"  {low:>6}-{high:<6} {count:>8,} {'█' * round(40 * count / most)}")
    if side.truncated:
        console.print(
            f"  {side.truncated:,} examples are cut at the {cut}, to data.max_length={max_length} tokens",
            style="yellow",
        )
    if side.dropped:
        console.print(
            f"  {side.dropped:,} examples are left out: an empty response, a prompt that leaves no room, or held out",
            style="yellow",
        )
    if side.repeated:
        console.print(f"  {side.repeated:,} examples repeat an earlier one", style="yellow")
