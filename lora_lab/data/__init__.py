"""Data sets: sources, prompt templates, tokenising (cached), batch order, and the built-in tasks.

The road through this room: a *source* gives rows one by one (:mod:`lora_lab.data.reading`), each becomes a record
(:mod:`lora_lab.data.records`), a *template* renders it to an :class:`Example`, the tokenizer turns it into a row of the
source's tokens, which are cached (:mod:`lora_lab.data.cache`). A *division* says which rows are trained on and which
are held out (:class:`Split`), and :class:`BatchOrder` which of them make which step. Names are imported when first
used; none needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.data.dataset import check, examples, load
    from lora_lab.data.order import BatchOrder
    from lora_lab.data.records import Example
    from lora_lab.data.split import Split, Tokenised
    from lora_lab.data.surveying import survey
    from lora_lab.data.taskmix import family_names

__all__ = [
    "BatchOrder",
    "Example",
    "Split",
    "Tokenised",
    "check",
    "examples",
    "family_names",
    "load",
    "survey",
]

__getattr__ = names(
    __name__,
    {
        "BatchOrder": "order",
        "Example": "records",
        "Split": "split",
        "Tokenised": "split",
        "check": "dataset",
        "examples": "dataset",
        "family_names": "taskmix",
        "load": "dataset",
        "survey": "surveying",
    },
)
