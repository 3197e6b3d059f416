"""Recorders: a JSONL spool first, MLflow from the spool.

The only room that imports MLflow. Training writes to the :class:`Spool` and never waits for more; a
:class:`Tracker` follows the spools and the results in a thread of its own and brings them to MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.tracking.facts import DataFacts, Facts, read_facts
    from lora_lab.tracking.reader import read_store
    from lora_lab.tracking.record import origin
    from lora_lab.tracking.routes import Links, links
    from lora_lab.tracking.spool import Spool
    from lora_lab.tracking.store import check, redact, resolve_uri, ui_command
    from lora_lab.tracking.tracker import Lag, Tracker, Untracked, open_tracker

__all__ = [
    "DataFacts",
    "Facts",
    "Lag",
    "Links",
    "Spool",
    "Tracker",
    "Untracked",
    "check",
    "links",
    "open_tracker",
    "origin",
    "read_facts",
    "read_store",
    "redact",
    "resolve_uri",
    "ui_command",
]

__getattr__ = names(
    __name__,
    {
        "DataFacts": "facts",
        "Facts": "facts",
        "Lag": "tracker",
        "Links": "routes",
        "Spool": "spool",
        "Tracker": "tracker",
        "Untracked": "tracker",
        "check": "store",
        "links": "routes",
        "open_tracker": "tracker",
        "origin": "record",
        "read_facts": "facts",
        "read_store": "reader",
        "redact": "store",
        "resolve_uri": "store",
        "ui_command": "store",
    },
)
