"""``lora-lab cache``: what is kept for later sweeps, and how to be rid of it."""

from __future__ import annotations

import argparse

from lora_lab.errors import ConfigError, nearest

HELP = "what converted models and tokenised data take on the disk; remove them"
EXAMPLE = "lora-lab cache --clear shared --clear tokens"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cache``."""
    parser.add_argument(
        "--clear",
        metavar="KIND",
        action="append",
        default=[],
        help="remove what there is of a kind, or `all`; it is made again when it is needed",
    )


def run(args: argparse.Namespace) -> int:
    """Print a table, or remove.

    Raises:
        ConfigError: an unknown kind.
        CacheError: no permission.
    """
    from lora_lab.models import cache_folder
    from lora_lab.models.cached import KINDS, clear, held
    from lora_lab.spec import show_size

    for kind in args.clear:
        if kind not in (*KINDS, "all"):
            raise ConfigError(f"--clear {kind}: no such kind{nearest(kind, KINDS)} Known: {', '.join(KINDS)}, all.")
    kinds = list(KINDS) if "all" in args.clear else list(dict.fromkeys(args.clear))
    for kind in kinds:
        gone, busy = clear(kind)
        said = f"; {busy} being made now stay" if busy else ""
        print(f"{kind}: {gone.entries} removed, {show_size(gone.size)}{said}")
    if kinds:
        return 0
    found = held()
    print(cache_folder())
    for one in found:
        print(f"  {one.kind:<10} {show_size(one.size):>9}  {one.entries:>4}  {KINDS[one.kind]}")
    print(f"  {'':<10} {show_size(sum(one.size for one in found)):>9}")
    return 0
