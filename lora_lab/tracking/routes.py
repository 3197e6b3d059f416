"""Where a sweep is in MLflow's UI: the table of its runs, and the page that compares them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lora_lab.tracking.state import stores

COMPARED = 100
"""Runs on the compare page at most: it asks the server for each of them, one by one. Of more, every second, third, …"""


@dataclass(frozen=True)
class Links:
    """Routes of the UI, to be put behind its address."""

    table: str
    compare: str


def links(folder: Path, uri: str) -> Links | None:
    """The routes of the sweep in ``folder`` in the store at ``uri``; ``None`` before it was sent there."""
    found = stores(folder, uri)
    if not found:
        return None
    store = found[-1]
    if store.experiment_id is None or not store.runs:
        return None
    names = sorted(store.runs)
    every = -(-len(names) // COMPARED)
    runs = [store.runs[name] for name in names[::every]]
    condition = quote(f"tags.`lora_lab.sweep` = '{store.sweep}'")
    return Links(
        f"/#/experiments/{store.experiment_id}/runs?searchFilter={condition}",
        f"/#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([store.experiment_id]))}",
    )
