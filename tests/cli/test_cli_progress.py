"""Progress: what is shown of runs that start, step and end, on a terminal and in a pipe."""

from __future__ import annotations

import io
import re
import threading
from typing import Any

import pytest
from rich.console import Console

from lora_lab.cli.progress import PIPE_SECONDS, Progress, duration, ended_line
from lora_lab.spec import EvalMetrics, ModelSpec, Outcome, RunResult, RunSpec, StepMetrics, pairs

BASE = RunSpec(model=ModelSpec(name="tiny", source="random", config=pairs({"model_type": "llama"})))
PATHS = ("method.r", "method.roles")


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def spec(r: int = 8) -> RunSpec:
    return BASE.at({"method.r": r, "method.roles": ("query", "value")})


def step(number: int, loss: float = 1.5) -> StepMetrics:
    return StepMetrics(number, 0.1, loss, 1e-4, 1.0, 500, 300, 0.5)


def result(run: str, outcome: Outcome = Outcome.COMPLETED, **fields: Any) -> RunResult:
    measured = {"eval_loss": 1.25, "base_eval_loss": 2.5, "seconds": 61.0, "steps": 40} | fields
    return RunResult(run=run, trial=0, seed=0, key="k", outcome=outcome, **measured)


def piped(planned: int = 4, done: int = 0) -> tuple[Progress, io.StringIO, Clock]:
    text, clock = io.StringIO(), Clock()
    return Progress(Console(file=text, width=60), planned, done, paths=PATHS, clock=clock), text, clock


def test_a_pipe_gets_a_line_at_start_and_end_and_one_every_ten_seconds() -> None:
    progress, text, clock = piped(done=1)
    with progress:
        progress.say("loading tiny (float32)")
        progress.started("t0000-s0", spec(), 40, 0)
        progress.started("t0001-s0", spec(2), 40, 10)
        for number in range(1, 21):
            clock.now += 1.0
            progress.step("t0000-s0", step(number))
        progress.evaluation("t0000-s0", EvalMetrics(20, 1.3, 100, 0.5, 0.1))
        progress.ended(result("t0000-s0", exact_match=0.41))
    assert text.getvalue().splitlines() == [
        "loading tiny (float32)",
        "t0000-s0 started: r=8 roles=query+value, 40 steps",
        "t0001-s0 started: r=2 roles=query+value, 40 steps, going on from step 10",
        "sweep: 1/4 runs, 2 active, 1,000 tokens/s, about 1 min 40 s left; t0000-s0 10/40 loss 1.500",
        "sweep: 1/4 runs, 2 active, 1,000 tokens/s, about 1 min 30 s left; t0000-s0 20/40 loss 1.500",
        "t0000-s0 completed: r=8 roles=query+value, eval_loss 1.250 (base 2.500), exact_match 0.41, 1 min 01 s",
    ]
    assert PIPE_SECONDS == 10.0


def test_time_left_counts_what_this_session_did() -> None:
    progress, _, clock = piped(planned=4, done=2)
    assert progress.seconds_left() is None
    progress.started("a", spec(), 40, 20)
    assert progress.seconds_left() is None
    clock.now += 10
    progress.step("a", step(30))  # a quarter of a run in 10 s; 1.25 runs are left
    assert progress.seconds_left() == pytest.approx(50)
    clock.now += 10
    progress.ended(result("a"))  # half a run in 20 s; one run is left
    assert progress.seconds_left() == pytest.approx(40)
    progress.set_done(4)
    assert progress.seconds_left() == 0.0


def test_a_run_put_aside_is_not_settled() -> None:
    progress, text, _ = piped()
    progress.started("t0000-s0", spec(), 40, 0)
    progress.step("t0000-s0", step(13))
    progress.ended(result("t0000-s0", Outcome.PREEMPTED, eval_loss=None, steps=13))
    assert text.getvalue().splitlines()[-1] == "t0000-s0 paused: r=8 roles=query+value, put aside at step 13"
    assert progress.line() == "sweep: 0/4 runs, 0 active, about 0 s left"


@pytest.mark.parametrize(
    ("outcome", "words"),
    [(Outcome.DIVERGED, "diverged"), (Outcome.OUT_OF_MEMORY, "out of memory"), (Outcome.FAILED, "failed")],
)
def test_a_bad_end_says_why(outcome: Outcome, words: str) -> None:
    line = ended_line(result("r", outcome, eval_loss=None, seconds=0.0, message="NaN at step 4\nmore"), "r=8")
    assert line == f"r {words}: r=8, NaN at step 4"
    assert ended_line(result("r", outcome, eval_loss=None, seconds=0.0)) == f"r {words}"


def test_a_step_of_an_unknown_run_and_brackets_in_texts_are_harmless() -> None:
    progress, text, _ = piped()
    progress.step("nobody", step(1))
    progress.evaluation("nobody", EvalMetrics(0, 1.0, 1, 0.0, 0.1))
    progress.ended(result("nobody"))
    progress.say("[/not markup] [red]")
    assert text.getvalue().endswith("[/not markup] [red]\n")


class Closed(io.StringIO):
    """A pipe whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_closed_pipe_does_not_stop_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "on_broken_pipe", lambda self: (_ for _ in ()).throw(SystemExit(1)))
    with Progress(Console(file=Closed()), 4) as progress:
        progress.started("a", spec(), 40, 0)
        progress.ended(result("a"))
    assert [record.message for record in caplog.records] == ["progress is no longer shown: its output is closed (1)"]


def test_lines_from_many_threads_are_whole() -> None:
    progress, text, _ = piped(planned=64)

    def work(k: int) -> None:
        run = f"t{k:04d}-s0"
        progress.started(run, spec(), 40, 0)
        for number in range(1, 41):
            progress.step(run, step(number))
        progress.ended(result(run))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = text.getvalue().splitlines()
    assert len(lines) == 32 and all(re.match(r"t00\d\d-s0 (started|completed): r=8 ", line) for line in lines)
    assert progress.line().startswith("sweep: 16/64 runs, 0 active")


# -- on a terminal ---------------------------------------------------------------------------------------


def screen(progress: Progress, width: int, height: int = 24) -> list[str]:
    """What the live display shows now."""
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(progress._screen())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def on_terminal(width: int, height: int = 24, planned: int = 18) -> tuple[Progress, io.StringIO, Clock]:
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, width=width, height=height, force_terminal=True)
    return Progress(console, planned, 7, paths=PATHS, clock=clock), text, clock


@pytest.mark.parametrize("width", [80, 120])
def test_one_bar_and_one_line_a_lane(width: int) -> None:
    progress, _, clock = on_terminal(width)
    progress.started("t0003-s1", spec(), 400, 0)
    progress.started("t0004-s0", spec(32), 400, 0)
    progress.evaluation("t0003-s1", EvalMetrics(0, 2.5, 100, 0.5, 0.1))
    for number in (1, 2, 100):
        clock.now += 30
        progress.step("t0003-s1", step(number, 1.234))
    lines = screen(progress, width)
    assert len(lines) == 3 and max(map(len, lines)) <= width
    assert re.fullmatch(r"sweep [━╸╺ ]{8,40} 7/18 runs · 2 active · 1,000 tok/s · 1:30 · ETA 1:04:30", lines[0])
    assert re.search(r"t0003-s1  r=8 roles=query\+value +100/400  loss 1\.234 .*1,000 tok/s", lines[1])
    assert ("eval 2.500" in lines[1]) == (width == 120)
    assert re.search(r"t0004-s0  r=32 roles=query\+value\s+0/400", lines[2])


def test_more_lanes_than_lines() -> None:
    progress, _, _ = on_terminal(80, height=10)
    for k in range(16):
        progress.started(f"t{k:04d}-s0", spec(), 400, 0)
    lines = screen(progress, 80, 10)
    assert len(lines) == 8 and lines[-1] == "… and 10 more"


def test_long_points_are_cut_and_never_the_numbers() -> None:
    progress, _, _ = on_terminal(80)
    progress._paths = ("method.r", "method.roles", "optimizer.name", "optimizer.lr", "optimizer.weight_decay")
    progress.started("t0003-s1", spec(), 400, 0)
    progress.step("t0003-s1", step(12, 1.234))
    line = screen(progress, 80)[1]
    assert len(line) <= 80 and re.search(r"… +12/400  loss 1\.234 +1,000 tok/s$", line)


def test_the_terminal_keeps_the_notices_and_the_ends() -> None:
    progress, text, _ = on_terminal(80)
    with progress:
        progress.say("training up to 2 runs at once on cpu")
        progress.started("t0003-s1", spec(), 400, 0)
        progress.step("t0003-s1", step(1))
        progress.ended(result("t0003-s1"))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert "training up to 2 runs at once on cpu" in shown
    assert "t0003-s1 completed: r=8 roles=query+value, eval_loss 1.250 (base 2.500)" in shown
    assert "started" not in shown
    assert text.getvalue().rstrip("\n").endswith("\x1b[2K")  # the bar itself is gone


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 00 s"), (8.2, "8 s"), (250, "4 min 10 s"), (7500, "2 h 05 min"), (-1, "0 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
