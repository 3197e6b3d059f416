"""Sizes of configurations: planned without allocating anything, and measured where a sweep trained them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.analysis.claims import Size
from lora_lab.article.budgets import planned_run
from lora_lab.article.section import Sized
from lora_lab.config import compose_run
from lora_lab.errors import MethodError, ModelError, SpecError
from lora_lab.files import read_json
from lora_lab.planner import plan
from lora_lab.spec import Sweep, thaw

if TYPE_CHECKING:
    import pandas as pd

    from lora_lab.planner import Plan

GPU_BYTES = 80_000_000_000
"""Held against the memory of a large GPU; the peak does not depend on it."""


def sizes_of(
    wanted: Sequence[Sized], frames: Mapping[str, pd.DataFrame], folder: Path, say: Callable[[str], None]
) -> dict[str, Size]:
    """Plan each configuration; one that a sweep in ``folder`` trained gets what was measured there, too.

    A configuration that cannot be planned here is left out, and ``say`` is told why.

    Raises:
        ConfigError: the overrides of a configuration are not those of a run.
    """
    found = {}
    for one in wanted:
        if one.sweep is not None and one.sweep not in frames:
            say(f"{one.label}: not trained yet")
            continue
        try:
            found[one.label] = planned(one) if one.sweep is None else _trained(one, frames[one.sweep], folder)
        except (ModelError, MethodError, SpecError) as error:
            say(f"{one.label}: cannot be planned: {error}")
    return found


def planned(one: Sized) -> Size:
    """The size of a configuration of the article on a GPU."""
    answer = _plan(tuple(one.overrides))
    article = math.nan if one.article_gb is None else one.article_gb * 1e9
    return Size(one.label, answer.peak_bytes, answer.trainable_parameters, article=article)


@cache
def _plan(overrides: tuple[str, ...]) -> Plan:
    return plan(compose_run(planned_run(overrides)), memory=GPU_BYTES, device="cuda")


def _trained(one: Sized, frame: pd.DataFrame, folder: Path) -> Size:
    tree = read_json(folder / str(one.sweep) / "sweep.json")
    sweep = Sweep.from_tree({key: value for key, value in tree.items() if key != "key"})
    point = thaw(one.point)
    rows = frame[frame["outcome"] == "COMPLETED"]
    for path, value in point.items():
        rows = rows[[v == value for v in rows[path]]]
    answer = plan(sweep.base.at(point), memory=GPU_BYTES, device="cpu")
    measured = float(rows["lane_bytes"].mean()) if len(rows) else math.nan
    return Size(one.label, answer.lane_bytes, answer.trainable_parameters, measured)
