"""Where things that are made once and used by every sweep are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$LORA_LAB_CACHE`` if it is set, else ``~/.cache/lora-lab``. The folder need not exist yet."""
    chosen = os.environ.get("LORA_LAB_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "lora-lab"
