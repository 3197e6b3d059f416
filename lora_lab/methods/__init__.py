"""PEFT methods behind one contract: :func:`attach` gives an :class:`Attachment`.

The only room that imports ``peft``. Importing this package loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.methods.attachment import Attachment, LowRank
    from lora_lab.methods.table import attach
    from lora_lab.methods.targets import target_modules

__all__ = ["Attachment", "LowRank", "attach", "target_modules"]

__getattr__ = names(
    __name__, {"Attachment": "attachment", "LowRank": "attachment", "attach": "table", "target_modules": "targets"}
)
