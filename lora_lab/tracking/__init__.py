"""Recorders: a JSONL spool first, MLflow from the spool.

The only room that imports MLflow. Training writes to the :class:`Spool` and never waits for more; a
:class:`Tracker` follows the spools and the results in a thread of its own and brings them to MLflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.tracking.spool import Spool
    from lora_lab.tracking.store import check, redact, resolve_uri, ui_command
    from lora_lab.tracking.tracker import Lag, Tracker, Untracked, open_tracker

__all__ = ["Lag", "Spool", "Tracker", "Untracked", "check", "open_tracker", "redact", "resolve_uri", "ui_command"]

_HOMES = {
    "Lag": "tracker",
    "Spool": "spool",
    "Tracker": "tracker",
    "Untracked": "tracker",
    "check": "store",
    "open_tracker": "tracker",
    "redact": "store",
    "resolve_uri": "store",
    "ui_command": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_lab.tracking' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lora_lab.tracking.{_HOMES[name]}"), name)
