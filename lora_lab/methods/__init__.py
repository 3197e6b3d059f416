"""PEFT methods behind one contract: :func:`attach` gives an :class:`Attachment`.

The only room that imports ``peft``. Importing this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.methods.attachment import Attachment, LowRank
    from lora_lab.methods.table import attach
    from lora_lab.methods.targets import target_modules

__all__ = ["Attachment", "LowRank", "attach", "target_modules"]

_HOMES = {"Attachment": "attachment", "LowRank": "attachment", "attach": "table", "target_modules": "targets"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_lab.methods' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lora_lab.methods.{_HOMES[name]}"), name)
