"""What becomes of a run that did not end well: tried again, and how, or recorded."""

from __future__ import annotations

from dataclasses import dataclass

from lora_lab.spec import Outcome, RunSpec
from lora_lab.study.entries import Cause, RunState

LOST_ALONE = 3
"""A run whose workers were lost so often is trained alone: it may be what kills them."""
LOST_MOST = 10
"""A run whose workers were lost more often than this has FAILED."""


@dataclass(frozen=True)
class Again:
    """How a run is tried again: alone in its pack, its micro-batch halved ``halvings`` times."""

    cause: Cause
    alone: bool
    halvings: int = 0


def again(run: RunState, spec: RunSpec, outcome: Outcome, company: bool) -> Again | None:
    """How to try a run again that ended with ``outcome``; ``None`` when that is its result.

    ``company``: other lanes trained beside it. Out of memory it is tried alone, then with half the micro-batch again
    and again (the effective batch stays), down to one example. A failure is its own only when it was alone.
    """
    if outcome is Outcome.OUT_OF_MEMORY:
        if company and not run.alone:
            return Again(Cause.OUT_OF_MEMORY, alone=True, halvings=run.halvings)
        halvings = smaller(spec, run.halvings)
        return None if halvings is None else Again(Cause.OUT_OF_MEMORY, alone=True, halvings=halvings)
    if outcome is Outcome.FAILED and company and not run.alone:
        return Again(Cause.COMPANY, alone=True, halvings=run.halvings)
    return None


def smaller(spec: RunSpec, halvings: int) -> int | None:
    """How often to halve the micro-batch of a run that had too little memory; ``None`` when it is one example."""
    return halvings + 1 if spec.budget.micro >> halvings > 1 else None


def lost_too_often(run: RunState) -> str | None:
    """Why a run is given up whose workers were lost again and again; ``None`` while it may be tried."""
    lost = run.back[Cause.LOST]
    if lost <= LOST_MOST:
        return None
    return (
        f"its worker was lost {lost} times while it trained, at last when it trained alone; it may be what kills them "
        "(out of the machine's memory?). Look at the machine's log, then: lora-lab retry SWEEP"
    )
