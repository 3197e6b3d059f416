"""``lora-lab VERB …``: finds the verb, reads its arguments, and turns what it raises into an exit code.

A verb is a module of this package with

- ``HELP``: one line, and ``EXAMPLE``: a command line, for ``--help``;
- ``configure(parser)``: adds its arguments;
- ``run(args) -> int``: does it and returns the exit code; may raise any :class:`LoraLabError`.

Importing it must be cheap: heavy imports stand inside ``run``. Exit codes: 0 done, 1 something failed while
running, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, Protocol, cast

import lora_lab
from lora_lab.errors import ConfigError, Interrupted, LoraLabError, nearest

STUDY_VERBS = ("worker", "workers", "stop", "extend", "clone", "retry", "cancel", "export", "import", "prune-files")
ADAPTER_VERBS = ("merge", "combine", "subspace", "generate", "chat", "latency")
VERBS = (
    *("sweep", "train", "status", "report", "compare", "reproduce", "ui", "sync", "doctor"),
    *("plan", "measure", "data", "cache", "eval"),
    *STUDY_VERBS,
    *ADAPTER_VERBS,
)
"""In the order that ``--help`` shows them."""
ALLOW_CODE = "allow_code=true"
"""Lets a configuration name Python functions of the user's (``data=callable``)."""


class Verb(Protocol):
    """What a verb module looks like."""

    HELP: str
    EXAMPLE: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit code."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`ConfigError` and names the nearest flag."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        message = message.removesuffix(", key=value")  # argparse asks for what may be left out, too
        head, _, rest = message.partition("unrecognized arguments: ")
        if rest and not head:
            flags = [flag for action in self._actions for flag in action.option_strings]
            unknown = next((word for word in rest.split() if word.startswith("-")), rest).partition("=")[0]
            message = f"{self.prog} has no {unknown}{nearest(unknown, flags)}"
        end = "" if message.endswith(("?", ".")) else "."
        raise ConfigError(f"{message}{end} See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lora-lab`` with these arguments (default: those of the process) and return its exit code."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        return error.exit_code
    except LoraLabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: not our failure, but nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in lora-lab; please report it with the lines above.", file=sys.stderr)
        return 1


def _dispatch(argv: list[str]) -> int:
    if not argv:
        print(_overview(), file=sys.stderr)
        return ConfigError.exit_code
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"lora-lab {lora_lab.__version__}")
        return 0
    if name not in VERBS:
        raise ConfigError(f"no verb {name!r}{nearest(name, VERBS)} Verbs: {', '.join(VERBS)}.")
    if ALLOW_CODE in rest:  # said here or nowhere: no configuration file can say it
        os.environ["LORA_LAB_ALLOW_CODE"] = "1"
        rest = [word for word in rest if word != ALLOW_CODE]
    verb = verb_of(name)
    parser = Parser(
        prog=f"lora-lab {name}",
        description=f"{verb.HELP[0].upper()}{verb.HELP[1:]}.",
        epilog=f"example:\n  {verb.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.configure(parser)
    if any(word in ("-h", "--help") for word in rest):
        parser.print_help()
        return 0
    code = verb.run(parser.parse_intermixed_args(rest))
    sys.stdout.flush()
    return code


def verb_of(name: str) -> Verb:
    """The module of a verb."""
    module = name.replace("-", "_")
    return cast(Verb, importlib.import_module(f"lora_lab.cli.{module}{'_' if keyword.iskeyword(module) else ''}"))


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb_of(name).HELP}" for name in VERBS)
    return (
        "usage: lora-lab VERB [SWEEP] [key=value …] [--flags]\n\n"
        "Find the right LoRA configuration for a language model, fast, and know how sure one may be.\n\n"
        f"verbs:\n{verbs}\n\n"
        "A SWEEP is a name or a YAML file; key=value overrides anything in it, as in Hydra.\n"
        "`lora-lab VERB --help` says more. Start with: lora-lab sweep rank_alpha"
    )


if __name__ == "__main__":
    sys.exit(main())
