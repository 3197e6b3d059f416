"""``lora-lab chat``: talk to an adapter in the terminal, beside another one or the base model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lora_lab.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = "talk to an adapter in the terminal, side by side with others or the base model"
EXAMPLE = "lora-lab chat best:rank_alpha --compare base"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``chat``."""
    parser.add_argument("adapter", help="base, best:SWEEP, SWEEP/RUN or a folder")
    parser.add_argument("overrides", nargs="*", metavar="model=…", help="the base model, where it is not known")
    parser.add_argument("--compare", nargs="+", default=[], metavar="ADAPTER", help="who answers, too")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="of an answer (default: 128)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Read lines from the terminal or a pipe until the end; ``/new`` begins again.

    Raises:
        BadInput: an adapter or base that cannot be used.
    """
    from lora_lab.adapters import resolve
    from lora_lab.bench.answers import Speakers

    if args.max_new_tokens < 1:
        raise SpecError(f"--max-new-tokens: must be 1 or more, got {args.max_new_tokens}.")
    references = resolve([args.adapter, *args.compare], args.overrides)
    speakers = Speakers.load(references, args.device)
    conversations: list[list[dict[str, str]]] = [[] for _ in references]
    for line in _lines():
        if line == "/new":
            conversations = [[] for _ in references]
            continue
        for turns in conversations:
            turns.append({"role": "user", "content": line})
        replies = speakers.reply(conversations, args.max_new_tokens)
        for reference, turns, reply in zip(references, conversations, replies, strict=True):
            turns.append({"role": "assistant", "content": reply})
            print(f"[{reference.name}] {reply}" if len(references) > 1 else reply, flush=True)
    return 0


def _lines() -> Iterator[str]:
    """What is typed, or piped in; without blank lines."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("Type a message; /new begins again, Ctrl-D ends.")
    while True:
        if terminal:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
