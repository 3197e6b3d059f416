"""The front door: help, verbs, flags, and how everything that is raised ends the process."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_lab.cli.main import VERBS, main, verb_of
from lora_lab.errors import CheckpointError, DataError, Interrupted, LoraLabError, OutOfMemory

HEAVY = {"torch", "transformers", "peft", "optuna", "mlflow", "pandas", "numpy", "hydra", "omegaconf", "rich", "yaml"}


def verb(run: Callable[[argparse.Namespace], int], name: str = "status") -> types.ModuleType:
    """A verb module that does ``run``."""

    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("sweep", nargs="?")
        parser.add_argument("overrides", nargs="*")
        parser.add_argument("--json", action="store_true")

    module = types.ModuleType(f"lora_lab.cli.{name}")
    module.__dict__.update(HELP="say how it is", EXAMPLE=f"lora-lab {name} x", configure=configure, run=run)
    return module


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], int]], None]:
    def install(run: Callable[[argparse.Namespace], int]) -> None:
        monkeypatch.setitem(sys.modules, "lora_lab.cli.status", verb(run))

    return install


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_help_shows_every_verb_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom lora_lab.cli.main import main\ncode = main(['--help'])\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    times: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert answer.returncode == 0, answer.stderr
        assert answer.stderr.strip() == "[]"
    for name in VERBS:
        assert f"\n  {name:<6}  " in answer.stdout
    assert min(times) < 0.5, f"`lora-lab --help` took {times} seconds of processor time"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = verb_of(name)
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lora-lab {name}")
    assert f"example:\n  {module.EXAMPLE}" in shown
    assert module.EXAMPLE.startswith(f"lora-lab {name}")
    assert "\n" not in module.HELP
    assert main([name, "something", "-h"]) == 0


def test_no_arguments_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: lora-lab VERB" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import lora_lab

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lora-lab {lora_lab.__version__}\n"


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swep", "rank_alpha"]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: no verb 'swep'; did you mean 'sweep'? Verbs: sweep, train,")


def test_an_unknown_flag(
    status: Callable[[Callable[[argparse.Namespace], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    status(lambda args: 0)
    assert main(["status", "--jsn"]) == 2
    message = "error: lora-lab status has no --jsn; did you mean '--json'? See `lora-lab status --help`.\n"
    assert capsys.readouterr().err == message
    assert main(["status", "--json=yes"]) == 2
    assert "See `lora-lab status --help`." in capsys.readouterr().err
    assert main(["status", "--js"]) == 2


def test_flags_and_overrides_in_any_order(status: Callable[[Callable[[argparse.Namespace], int]], None]) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 0

    status(run)
    for line in ("x a=1 ~b --json", "--json x a=1 ~b", "x --json a=1 ~b", "x a=1 --json ~b"):
        assert main(["status", *line.split()]) == 0
    assert all(vars(args) == {"sweep": "x", "overrides": ["a=1", "~b"], "json": True} for args in seen)
    assert main(["status"]) == 0
    assert vars(seen[-1]) == {"sweep": None, "overrides": [], "json": False}


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_code_of_a_verb(status: Callable[[Callable[[argparse.Namespace], int]], None], code: int) -> None:
    status(lambda args: code)
    assert main(["status"]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("train.jsonl line 3: not JSON."), 2),
        (OutOfMemory("too little of it."), 1),
        (CheckpointError("torn."), 1),
        (LoraLabError("something."), 1),
    ],
)
def test_what_lora_lab_raises_is_one_line(
    status: Callable[[Callable[[argparse.Namespace], int]], None],
    error: LoraLabError,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status(raising(error))
    assert main(["status"]) == code
    assert capsys.readouterr() == ("", f"error: {error}\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("Interrupted; go on with: x")])
def test_interruption(
    status: Callable[[Callable[[argparse.Namespace], int]], None],
    error: BaseException,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status(raising(error))
    assert main(["status"]) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_a_bug_is_shown_with_its_traceback(
    status: Callable[[Callable[[argparse.Namespace], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    status(raising(ZeroDivisionError("a bug")))
    assert main(["status"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "ZeroDivisionError: a bug" in shown
    assert shown.endswith("error: this is a bug in lora-lab; please report it with the lines above.\n")


def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path) -> None:
    program = (
        "import sys, types\nfrom lora_lab.cli.main import main\n"
        "def run(args):\n    for i in range(100000): print(i)\n    return 0\n"
        "m = types.ModuleType('s'); m.HELP = 'x'; m.EXAMPLE = 'x'; m.configure = lambda p: None; m.run = run\n"
        "sys.modules['lora_lab.cli.status'] = m\nsys.exit(main(['status']))"
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    line = f"'{sys.executable}' '{file}' | head -1; echo ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True)
    assert answer.stdout == "0\n0\n"
    assert answer.stderr == ""
