"""What the events that steer a search add up to; the part of :class:`~lora_lab.study.state.State` that is about it.

===========  ==================================================================================================
``rung``     ``trial``, ``step``, ``mean``: all runs of the trial have reached its next rung; it is paused there
``promote``  ``trial``: it goes on
``pause``    ``run``, ``result``: its holder gives it back at a rung; the result settles it if it never goes on
``seed``     ``trial``, ``seed``: the trial is a contender and gets a further run
``stop``     ``message``: a stop rule holds; no further trial is asked, promoted or repeated
``import``   ``points``, ``results``: what another sweep has settled, taken over
``breed``    ``members``, ``copies`` (``trial``, ``params``, ``of``, ``lost``): a population has met; each copy is a
             trial that goes on from where trial ``of`` is paused, in the place of trial ``lost``
===========  ==================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_lab.spec import RunResult
from lora_lab.study.log import Event

COURSE_OPS = ("rung", "promote", "pause", "seed", "stop", "import", "breed")


@dataclass
class Steps:
    """Where a trial stands in the search: ``[step, mean loss]`` of each rung reached, the step at which it is paused
    now, its further seeds, and the runs that were given back at a rung, with what settles them. ``bred``: its
    population has met where it is paused."""

    rungs: list[tuple[int, float]] = field(default_factory=list)
    paused_at: int | None = None
    bred: bool = False
    further: list[int] = field(default_factory=list)
    kept: dict[int, RunResult] = field(default_factory=dict)
    """By seed."""


class Course:
    """The search's part of the state. ``steps`` holds the trials that have any."""

    def __init__(self) -> None:
        self.steps: dict[int, Steps] = {}
        self.stopped: str | None = None
        self.imported: list[dict[str, Any]] = []
        """Points that were taken over: the first trials."""
        self.taken: dict[str, RunResult] = {}
        """Results that were taken over, by key."""
        self.copies = 0
        """Trials that no sampler drew: copies of others in a population."""
        self.replaced: dict[int, int] = {}
        """Trials that left their population, and the copy in the place of each."""
        self.unbegun: dict[int, set[str]] = {}
        """Runs that have not yet taken over the checkpoint of a trial they are copies of, by that trial: it waits."""

    def steps_of(self, trial: int) -> Steps:
        """Where a trial stands."""
        return self.steps.setdefault(trial, Steps())

    def _rung(self, event: Event) -> None:
        steps = self.steps_of(event["trial"])
        steps.rungs.append((event["step"], event["mean"]))
        steps.paused_at = event["step"]

    def _stop(self, event: Event) -> None:
        self.stopped = event["message"]

    def _import(self, event: Event) -> None:
        self.imported = list(event["points"])
        self.taken = {result.key: result for result in map(RunResult.from_tree, event["results"])}
