"""``lora-lab generate``: the answers of adapters and of the base model to a file of prompts, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError, DataError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.adapters.references import Reference

HELP = "answers of adapters and the base model to a file of prompts, all in one pass"
EXAMPLE = "lora-lab generate base best:rank_alpha --prompts prompts.txt --out answers.jsonl"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``generate``."""
    parser.add_argument("adapters", nargs="+", help="base, best:SWEEP, SWEEP/RUN or a folder; model=… for their base")
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help='a prompt a line, or JSON lines with "prompt"'
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines (default: on the screen)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="of an answer (default: 64)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts of each at once (default: 16)")
    parser.add_argument("--chat", action="store_true", help="put each prompt into the tokenizer's chat template")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Generate greedily, every adapter on the one resident base.

    Raises:
        BadInput: prompts or adapters that cannot be used; nothing was loaded.
    """
    from lora_lab.adapters import resolve
    from lora_lab.bench.answers import Speakers
    from lora_lab.files import folder_errors, write_text

    for flag in ("max_new_tokens", "batch_size"):
        if getattr(args, flag) < 1:
            raise SpecError(f"--{flag.replace('_', '-')}: must be 1 or more, got {getattr(args, flag)}.")
    prompts = read_prompts(args.prompts)
    words = [word for word in args.adapters if not word.startswith(("model=", "model."))]
    references = resolve(words, [word for word in args.adapters if word not in words])
    speakers = Speakers.load(references, args.device)
    answers = speakers.answer(prompts, args.max_new_tokens, args.batch_size, chat=args.chat)
    rows = _rows(references, prompts, answers)
    if args.out is None:
        for row in rows:
            print(f"> {row['prompt']}")
            for name, text in row["answers"].items():
                print(f"[{name}] {text}")
        return 0
    with folder_errors(args.out):
        write_text(args.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{args.out}: {len(prompts)} prompts, {len(references)} answers each")
    return 0


def _rows(
    references: Sequence[Reference], prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "answers": {one.name: answers[k][i] for k, one in enumerate(references)}}
        for i, prompt in enumerate(prompts)
    ]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: the ``prompt`` of each JSON line in a ``.jsonl``, else a line each; blank ones left out.

    Raises:
        DataError: no such file, a line that is no JSON or has no ``prompt``, or no prompt at all.
        ConfigError: it is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"--prompts {path}: it is a folder. Give a file.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {path}: {error}. Give a UTF-8 text file, a prompt a line.") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            prompts.append(line)
            continue
        try:
            prompts.append(str(json.loads(line)["prompt"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path} line {number}: expected {{"prompt": "…"}}, got {line[:60]!r}.') from error
    if not prompts:
        raise DataError(f"--prompts {path}: there is no prompt in it. Write one a line.")
    return prompts
