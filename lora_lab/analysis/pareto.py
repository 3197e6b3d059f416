"""Which configurations no other one beats in everything: the front of loss, memory and time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_lab.analysis.grouping import configurations, objective_of
from lora_lab.analysis.intervals import Floats

COSTS = ("lane_bytes", "seconds")
"""Measured for each run alone; ``peak_bytes`` is that of the whole pack."""


def pareto_front(frame: pd.DataFrame, metric: str | None = None, costs: Sequence[str] = COSTS) -> pd.DataFrame:
    """One row a configuration: ``name``, the means of metric and costs, and ``front``, best metric first.

    ``front`` is true where no other configuration is at least as good in all of them and better in one.
    """
    metric, direction = objective_of(frame, metric, None)
    columns = {}
    for name in (metric, *costs):
        columns[name] = {c.name or "the base settings": c.mean for c in configurations(frame, name) if c.n}
    table = pd.DataFrame(columns).dropna()
    values = table.to_numpy(dtype=float).copy()
    if direction == "maximize" and len(values):
        values[:, 0] *= -1
    table = table.assign(front=on_front(values))
    return table.rename_axis("name").reset_index().sort_values(metric, ascending=direction == "minimize")


def on_front(values: Floats) -> np.ndarray:
    """Rows of ``values`` (points by objectives, all minimised) that no other row dominates."""
    found = np.zeros(len(values), dtype=bool)
    front = np.empty((0, values.shape[1]))
    for i in np.lexsort(values.T[::-1]):  # first objective first: whoever dominates a point comes before it
        point = values[i]
        dominated = ((front <= point).all(axis=1) & (front < point).any(axis=1)).any()
        if not dominated:
            found[i] = True
            front = np.vstack([front, point])
    return found
