"""Live progress of a sweep: a bar and one line a lane on a terminal, plain lines in a pipe.

A :class:`~lora_lab.spec.Recorder`. It never raises into training: when its output is gone (a closed
pipe), it falls silent and the runs go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lora_lab.analysis.naming import OUTCOME_WORDS, point_name
from lora_lab.spec import EvalMetrics, Outcome, RunResult, RunSpec, StepMetrics, at_path, to_tree

PIPE_SECONDS = 10.0
"""Between two lines of sweep progress in a pipe."""

SMOOTHING = 0.2
"""Weight of the newest step in a lane's tokens per second."""

log = logging.getLogger(__name__)


@dataclass
class _Lane:
    run: str
    point: str
    first: int
    total: int
    step: int
    loss: float | None = None
    eval_loss: float | None = None
    rate: float | None = None
    """Non-padding tokens of this lane per second of wall time, smoothed."""


@dataclass
class _Sweep:
    planned: int
    done: int
    began: float | None = None
    """When the first run of this session entered a pack."""
    worked: float = 0.0
    """Runs' worth of steps done by lanes that have left, in this session."""
    lanes: dict[str, _Lane] = field(default_factory=dict)


class Progress:
    """Shows a sweep while it runs; use it as a context manager.

    ``planned_runs`` and ``done_runs`` are of the whole sweep; ``paths`` are the config paths whose values
    tell one run from another (the searched ones). Every method may be called from any thread.
    """

    def __init__(
        self,
        console: Console,
        planned_runs: int,
        done_runs: int = 0,
        *,
        paths: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._paths = tuple(paths)
        self._clock = clock
        self._lock = threading.RLock()
        self._state = _Sweep(planned_runs, done_runs)
        self._live: Live | None = None
        self._spoken = clock()
        self._silent = False

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._screen, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            self._guarded(live.stop)

    # -- the recorder ------------------------------------------------------------------------------------

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        """``run`` enters a pack."""
        tree = to_tree(spec)
        point = point_name({path: at_path(tree, path) for path in self._paths})
        with self._lock:
            if self._state.began is None:
                self._state.began = self._clock()
            self._state.lanes[run] = _Lane(run, point, first_step, total_steps, first_step)
        if self._live is None:
            goes_on = f", going on from step {first_step}" if first_step else ""
            self.say(f"{run} started: {f'{point}, ' if point else ''}{total_steps} steps{goes_on}")

    def step(self, run: str, metrics: StepMetrics) -> None:
        """One optimizer step is done."""
        with self._lock:
            lane = self._state.lanes.get(run)
            if lane is None:
                return
            lane.step, lane.loss = metrics.step, metrics.loss
            if metrics.seconds > 0:
                rate = metrics.tokens / metrics.seconds
                lane.rate = rate if lane.rate is None else lane.rate + SMOOTHING * (rate - lane.rate)
            now = self._clock()
            due = self._live is None and now - self._spoken >= PIPE_SECONDS
            if due:
                self._spoken = now
        if due:
            self.say(self.line())

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        """A run was evaluated."""
        with self._lock:
            lane = self._state.lanes.get(run)
            if lane is not None:
                lane.eval_loss = metrics.loss

    def ended(self, result: RunResult) -> None:
        """A run is settled or put aside."""
        with self._lock:
            lane = self._state.lanes.pop(result.run, None)
            if lane is not None:
                whole = result.outcome is not Outcome.PREEMPTED
                self._state.worked += (1.0 - lane.first / max(lane.total, 1)) if whole else _fraction(lane)
            if result.outcome is not Outcome.PREEMPTED:
                self._state.done += 1
        self.say(ended_line(result, lane.point if lane is not None else ""), _STYLES.get(result.outcome))

    # -- notices -----------------------------------------------------------------------------------------

    def say(self, text: str, style: str | None = None) -> None:
        """Print a notice: above the bar on a terminal, as a line of its own in a pipe."""
        soft = self._live is None
        self._guarded(lambda: self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=soft))

    def set_done(self, done_runs: int) -> None:
        """Set the number of settled runs (when some were settled without being trained)."""
        with self._lock:
            self._state.done = done_runs

    def line(self) -> str:
        """``sweep: 7/18 runs, 2 active, 5210 tokens/s, about 4 min left``."""
        with self._lock:
            lanes = list(self._state.lanes.values())
            said = [f"{self._state.done}/{self._state.planned} runs", f"{len(lanes)} active"]
            rate = sum(lane.rate or 0.0 for lane in lanes)
            if rate:
                said.append(f"{rate:,.0f} tokens/s")
            left = self.seconds_left()
        if left is not None:
            said.append(f"about {duration(left)} left")
        lane = max(lanes, key=_fraction, default=None)
        ahead = "" if lane is None or lane.loss is None else f"; {lane.run} {_lane_text(lane)}"
        return f"sweep: {', '.join(said)}{ahead}"

    def seconds_left(self) -> float | None:
        """Seconds until the sweep is done at this session's pace; ``None`` while that is not known."""
        with self._lock:
            began = self._state.began
            lanes = self._state.lanes.values()
            here = sum(_fraction(lane) for lane in lanes)
            todo = self._state.planned - self._state.done - sum(lane.step / max(lane.total, 1) for lane in lanes)
            done = self._state.worked + here
            if began is None or done <= 0:
                return None
            return max(todo, 0.0) * (self._clock() - began) / done

    # -- drawing -----------------------------------------------------------------------------------------

    def _screen(self) -> RenderableType:
        with self._lock:
            state = self._state
            lanes = [_Lane(**vars(lane)) for lane in state.lanes.values()]
            done, planned, began = state.done, state.planned, state.began
            left = self.seconds_left()
            elapsed = 0.0 if began is None else self._clock() - began
        share = done + sum(lane.step / max(lane.total, 1) for lane in lanes)
        rate = sum(lane.rate or 0.0 for lane in lanes)
        said = [f"{done}/{planned} runs", f"{len(lanes)} active"]
        said += [f"{rate:,.0f} tok/s"] if rate else []
        said += [_clock_face(elapsed)] if began is not None else []
        said += [f"ETA {_clock_face(left)}"] if left is not None else []
        text = " · ".join(said)
        width = min(max(8, self._console.width - len(text) - 8), 40)
        head = Table.grid(padding=(0, 1))
        for _ in range(3):
            head.add_column(no_wrap=True)
        head.add_row("sweep", ProgressBar(total=max(planned, 1), completed=share, width=width), text)
        room = max(1, self._console.height - 4)
        lines = [
            (
                lane.run,
                lane.point,
                f"{lane.step}/{lane.total}",
                "" if lane.loss is None else f"loss {lane.loss:.3f}",
                "" if lane.eval_loss is None or self._console.width < 100 else f"eval {lane.eval_loss:.3f}",
                "" if lane.rate is None else f"{lane.rate:,.0f} tok/s",
            )
            for lane in lanes[:room]
        ]
        widths = [max((len(line[j]) for line in lines), default=0) for j in range(6)]
        spare = self._console.width - sum(widths) + widths[1] - 10
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", style="cyan", max_width=max(1, min(widths[1], spare)))
        for _ in range(4):
            table.add_column(no_wrap=True, justify="right")
        for line in lines:
            table.add_row(*map(Text, line))
        more = [Text(f"… and {len(lanes) - room} more", style="dim")] if len(lanes) > room else []
        return Group(head, table, *more)

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write; where the output is gone (rich ends the program then), say so once to the log and be silent."""
        if self._silent:
            return
        try:
            write()
        except (OSError, ValueError, SystemExit) as error:
            self._silent = True
            log.warning("progress is no longer shown: its output is closed (%s)", error)


_STYLES = {
    Outcome.COMPLETED: "dim",
    Outcome.PRUNED: "dim",
    Outcome.PREEMPTED: "dim",
    Outcome.DIVERGED: "yellow",
    Outcome.OUT_OF_MEMORY: "red",
    Outcome.FAILED: "red",
}


def ended_line(result: RunResult, point: str = "") -> str:
    """``t0003-s1 completed: r=8 alpha_over_r=1, eval_loss 1.234 (base 2.914), exact_match 0.41, 12 s``."""
    said = [point] if point else []
    if result.eval_loss is not None:
        base = "" if result.base_eval_loss is None else f" (base {result.base_eval_loss:.3f})"
        said.append(f"eval_loss {result.eval_loss:.3f}{base}")
    if result.exact_match is not None:
        said.append(f"exact_match {result.exact_match:.2f}")
    if result.outcome is Outcome.PREEMPTED:
        said.append(f"put aside at step {result.steps}")
    elif result.seconds:
        said.append(duration(result.seconds))
    if result.message and result.outcome is not Outcome.PREEMPTED:
        said.append(result.message.splitlines()[0])
    head = f"{result.run} {OUTCOME_WORDS[result.outcome]}"
    return f"{head}: {', '.join(said)}" if said else head


def duration(seconds: float) -> str:
    """``8 s``, ``4 min 10 s``, ``2 h 05 min``."""
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _clock_face(seconds: float) -> str:
    """``4:10``, ``2:05:00``."""
    whole = round(max(seconds, 0.0))
    minutes = f"{whole // 60 % 60:02d}" if whole >= 3600 else str(whole // 60)
    return f"{f'{whole // 3600}:' if whole >= 3600 else ''}{minutes}:{whole % 60:02d}"


def _fraction(lane: _Lane) -> float:
    """The share of the whole run that this session has done."""
    return (lane.step - lane.first) / max(lane.total, 1)


def _lane_text(lane: _Lane) -> str:
    return f"{lane.step}/{lane.total} loss {lane.loss:.3f}"
