"""After the sweep: adapters merged, combined, compared by the subspaces they use, and exported.

Importing this package loads nothing heavy; each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.adapters.combining import combine
    from lora_lab.adapters.gguf_files import export_adapter, export_model
    from lora_lab.adapters.merging import merge
    from lora_lab.adapters.ranks import suggest_ranks
    from lora_lab.adapters.references import Reference, resolve
    from lora_lab.adapters.subspace import compare_adapters
    from lora_lab.adapters.unmerging import unmerge
    from lora_lab.adapters.verifying import verify

__all__ = [
    "Reference",
    "combine",
    "compare_adapters",
    "export_adapter",
    "export_model",
    "merge",
    "resolve",
    "suggest_ranks",
    "unmerge",
    "verify",
]

__getattr__ = names(
    __name__,
    {
        "Reference": "references",
        "combine": "combining",
        "compare_adapters": "subspace",
        "export_adapter": "gguf_files",
        "export_model": "gguf_files",
        "merge": "merging",
        "resolve": "references",
        "suggest_ranks": "ranks",
        "unmerge": "unmerging",
        "verify": "verifying",
    },
)
