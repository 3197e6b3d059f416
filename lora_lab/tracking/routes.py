"""Where a sweep is in MLflow's UI: the table of its runs, and the page that compares them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lora_lab.files import read_json
from lora_lab.tracking.record import AXIS
from lora_lab.tracking.state import stores

COMPARED = 100
"""Runs on the compare page at most: it asks the server for each of them, one by one. Of more, every second, third, …"""


@dataclass(frozen=True)
class Links:
    """Routes of the UI, to be put behind its address."""

    table: str
    """All runs, the best first."""
    compare: str


def links(folder: Path, uri: str) -> Links | None:
    """The routes of the sweep in ``folder`` in the store at ``uri``; ``None`` before it was sent there.

    Raises:
        CheckpointError: ``sweep.json`` is torn.
    """
    found = stores(folder, uri)
    if not found:
        return None
    store = found[-1]
    if store.experiment_id is None or not store.runs:
        return None
    names = sorted(store.runs)
    every = -(-len(names) // COMPARED)
    runs = [store.runs[name] for name in names[::every]]
    condition = quote(f"tags.`lora_lab.sweep` = '{store.sweep}' and tags.`lora_lab.kind` = 'run'")
    objective = read_json(folder / "sweep.json")["objective"]
    order = quote(f"metrics.`{AXIS}{objective['metric']}`")
    upwards = str(objective["direction"] == "minimize").lower()
    # Ordered by a number, the table lists runs; by time, MLflow would fold all of them up under their parent.
    table = f"searchFilter={condition}&orderByKey={order}&orderByAsc={upwards}"
    return Links(
        f"/#/experiments/{store.experiment_id}/runs?{table}",
        f"/#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([store.experiment_id]))}",
    )
