"""Stage trees: where one run's trajectory is the beginning of another's, the common part is trained once.

Two runs that differ in nothing but how long they train take the same steps for as long as their learning rates are the
same: all of the shorter one's under a constant rate (or one that depends on the step alone), those before its decay
under warm-up-stable-decay.
"""

from __future__ import annotations

import json
from typing import Any

from lora_lab.spec.run import RunSpec
from lora_lab.spec.sweep import Sweep
from lora_lab.spec.tree import to_tree

STAGED = ("constant", "inverse_sqrt", "wsd")
"""Schedules whose rate does not depend, at first, on how long a run is."""
LENGTHS = ("budget.steps", "budget.epochs")


def staged(sweep: Sweep) -> bool:
    """Whether runs of ``sweep`` can share beginnings: their length is searched, and nothing judges them on the way."""
    return sweep.pruner.name == "none" and any(path in LENGTHS for path in sweep.space.paths)


def length_of(spec: RunSpec) -> tuple[str, float] | None:
    """The unit and the number in which a run's length is given; ``None`` where its beginning is not to be shared."""
    schedule: dict[str, Any] = to_tree(spec.schedule)
    if spec.schedule.name not in STAGED or schedule.get("warmup_ratio") is not None:
        return None
    if spec.budget.steps is not None:
        return "steps", float(spec.budget.steps)
    return "epochs", spec.budget.epochs or 1.0


def trunk_of(spec: RunSpec) -> str | None:
    """What all runs have in common that may share a beginning with ``spec``, seed included: all but the length."""
    length = length_of(spec)
    if length is None:
        return None
    tree = spec.canonical
    tree["budget"] = {k: v for k, v in tree["budget"].items() if k not in ("steps", "epochs")} | {"unit": length[0]}
    return json.dumps(tree, sort_keys=True)


def prefix_of(first: RunSpec, second: RunSpec) -> bool:
    """Whether ``second`` begins as ``first`` does, and goes on where that one stops (or decays)."""
    one, other = length_of(first), length_of(second)
    return one is not None and other is not None and one[1] < other[1] and trunk_of(first) == trunk_of(second)
