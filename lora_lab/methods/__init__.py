"""PEFT methods behind one contract: :func:`attach` gives an :class:`Attachment`, :func:`load` reads a saved one.

The only room that imports ``peft``. Importing this package loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.methods.attaching import attach, count
    from lora_lab.methods.attachment import Attachment, LowRank, RowPath
    from lora_lab.methods.loading import load
    from lora_lab.methods.ranks import module_ranks
    from lora_lab.methods.targets import target_modules

__all__ = ["Attachment", "LowRank", "RowPath", "attach", "count", "load", "module_ranks", "target_modules"]

__getattr__ = names(
    __name__,
    {
        "Attachment": "attachment",
        "LowRank": "attachment",
        "RowPath": "attachment",
        "attach": "attaching",
        "count": "attaching",
        "load": "loading",
        "module_ranks": "ranks",
        "target_modules": "targets",
    },
)
