"""lora-lab: find the right LoRA configuration for a language model, fast, and know how sure one may be.

The public names are imported when they are first used, so that ``import lora_lab`` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lora_lab.analysis import load_results
    from lora_lab.errors import LoraLabError
    from lora_lab.spec import RunResult, RunSpec, Space, Sweep

__all__ = ["LoraLabError", "RunResult", "RunSpec", "Space", "Sweep", "__version__", "load_results"]

_HOMES = {
    "LoraLabError": "lora_lab.errors",
    "RunResult": "lora_lab.spec",
    "RunSpec": "lora_lab.spec",
    "Space": "lora_lab.spec",
    "Sweep": "lora_lab.spec",
    "load_results": "lora_lab.analysis",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_lab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
