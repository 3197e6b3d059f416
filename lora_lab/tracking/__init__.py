"""Recorders: a JSONL spool first, MLflow from the spool.

The only room that imports MLflow. Training writes to the :class:`Spool` and never waits for more; a
:class:`Tracker` follows the spools and the results in a thread of its own and brings them to MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.tracking.reader import read_store
    from lora_lab.tracking.spool import Spool
    from lora_lab.tracking.store import check, redact, resolve_uri, ui_command
    from lora_lab.tracking.tracker import Lag, Tracker, Untracked, open_tracker

__all__ = [
    "Lag",
    "Spool",
    "Tracker",
    "Untracked",
    "check",
    "open_tracker",
    "read_store",
    "redact",
    "resolve_uri",
    "ui_command",
]

__getattr__ = names(
    __name__,
    {
        "Lag": "tracker",
        "Spool": "spool",
        "Tracker": "tracker",
        "Untracked": "tracker",
        "check": "store",
        "open_tracker": "tracker",
        "read_store": "reader",
        "redact": "store",
        "resolve_uri": "store",
        "ui_command": "store",
    },
)
