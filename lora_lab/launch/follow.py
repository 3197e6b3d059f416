"""Start a sweep's workers through a launcher and look after them until nothing is left to train."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_lab.errors import Interrupted, LauncherError, RunFailed
from lora_lab.launch.choosing import launcher_for
from lora_lab.launch.jobs import Jobs
from lora_lab.launch.launcher import Job, JobState, Launcher
from lora_lab.spec import Execution, Recorder
from lora_lab.study import Study
from lora_lab.study.lines import file_lock
from lora_lab.worker.interrupt import Interrupt

RESTARTS = 3
"""How often the job at a place is started again after it was lost."""
PATIENCE = 15 * 60.0
"""Seconds that a scheduler may be away before following ends; its jobs do not end with it."""

log = logging.getLogger(__name__)


def begin(execution: Execution, launcher: Launcher, *, say: Callable[[str], None]) -> list[Job]:
    """Start the jobs that are wanted and do not live yet; all that live."""
    folder = Path(execution.folder)
    jobs = Jobs(folder)
    with file_lock(folder / ".jobs.lock"):  # the same command may have been given twice
        return _top_up(execution, launcher, jobs, say)


def _top_up(execution: Execution, launcher: Launcher, jobs: Jobs, say: Callable[[str], None]) -> list[Job]:
    latest = jobs.latest(execution.launcher.name)
    states = launcher.states(list(latest.values()))
    alive = {place: job for place, job in latest.items() if states[job.id].alive}
    wanted = [place for place in range(execution.launcher.jobs) if place not in alive]
    started = _start(launcher, jobs, wanted, say) if wanted else []
    return [*alive.values(), *started]


def add(execution: Execution, launcher: Launcher, count: int, *, say: Callable[[str], None]) -> list[Job]:
    """Start ``count`` more jobs, at places that none had before."""
    jobs = Jobs(Path(execution.folder))
    first = max([execution.launcher.jobs - 1, *jobs.latest()]) + 1
    return _start(launcher, jobs, range(first, first + count), say)


def run(
    execution: Execution,
    study: Study,
    recorder: Recorder,
    *,
    say: Callable[[str], None],
    settled: Callable[[int], None],
) -> bool:
    """Let the launcher's workers train what is left; ``False`` when it was interrupted and they were stopped.

    A job that is lost is started again, :data:`RESTARTS` times at most; the others take over what it held. Ctrl-C stops
    workers that cannot live without this process, and leaves the others alone.

    Raises:
        LauncherError: the scheduler cannot be reached, or refuses.
        RunFailed: all workers crashed, with the end of what one said.
        Interrupted: Ctrl-C, and the workers go on.
    """
    with contextlib.closing(launcher_for(execution)) as launcher, Interrupt() as interrupt:
        begin(execution, launcher, say=say)
        jobs = Jobs(Path(execution.folder))
        seen = {result.run for result in study.results()}
        restarts: Counter[int] = Counter()
        mine: list[Job] = []
        states: dict[str, JobState] = {}
        heard = time.monotonic()
        try:
            while True:
                mine = list(jobs.latest(execution.launcher.name).values())
                try:
                    states, heard = launcher.states(mine), time.monotonic()
                except LauncherError as error:  # a scheduler that is restarted, say: workers do not need it
                    if time.monotonic() - heard > PATIENCE:
                        raise
                    log.info("the launcher does not answer, it is asked again: %s", error)
                _tell(study, recorder, seen, settled)
                if not study.waiting():
                    launcher.stop([job for job in mine if states.get(job.id) is JobState.WAITING])
                    mine = [job for job in mine if states.get(job.id) is JobState.RUNNING]
                    return _ended(launcher, mine, execution.launcher.grace_seconds, interrupt)
                lost = [job for job in mine if states.get(job.id) is JobState.LOST and restarts[job.place] < RESTARTS]
                if lost:
                    restarts.update(job.place for job in lost)
                    for job in lost:
                        say(f"worker {job.place} is lost (see {Path(execution.folder) / job.log}); it is started again")
                    _start(launcher, jobs, [job.place for job in lost], say)
                elif not any(state.alive for state in states.values()) and states:
                    break
                interrupt.wait(execution.launcher.poll_seconds)
                if interrupt.requested:
                    if launcher.survives:
                        raise Interrupted(
                            f"The {len(mine)} jobs go on by themselves. The same command follows them again; "
                            f"`lora-lab cancel {execution.folder}` ends them."
                        )
                    return False
        finally:
            if not launcher.survives:
                _stop(launcher, mine, execution.launcher.grace_seconds)
            _tell(study, recorder, seen, settled)
        if mine and all(states[job.id] is JobState.LOST for job in mine):
            output = Path(execution.folder) / mine[0].log
            said = output.read_text(errors="replace").strip().splitlines()[-5:] if output.exists() else []
            raise RunFailed(f"all {len(mine)} workers crashed; {output} ends with:\n" + "\n".join(said))
        return True


def _start(launcher: Launcher, jobs: Jobs, places: Sequence[int], say: Callable[[str], None]) -> list[Job]:
    started = launcher.start(places)
    jobs.add(started)
    names = ", ".join(job.id for job in started[:4]) + (", …" if len(started) > 4 else "")
    say(f"started {sum(job.workers for job in started)} workers ({started[0].launcher} {names})")
    return started


def _tell(study: Study, recorder: Recorder, seen: set[str], settled: Callable[[int], None]) -> None:
    settled(study.counts().runs)
    for result in study.results():
        if result.run not in seen:
            seen.add(result.run)
            recorder.ended(result)


def _ended(launcher: Launcher, jobs: Sequence[Job], seconds: float, interrupt: Interrupt) -> bool:
    """Wait for jobs that find nothing left and end by themselves; stop them where they do not."""
    until = time.monotonic() + seconds
    while any(state.alive for state in launcher.states(jobs).values()):
        if interrupt.requested or time.monotonic() > until:
            launcher.stop(jobs)
            break
        interrupt.wait(0.2)
    return True


def _stop(launcher: Launcher, jobs: Sequence[Job], seconds: float) -> None:
    """Ask ``jobs`` to save and end, and end those that do not; all at once on another Ctrl-C."""
    launcher.stop(jobs)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until and any(state.alive for state in launcher.states(jobs).values()):
            time.sleep(0.1)
    finally:
        launcher.kill(jobs)
