"""The article's claims as data: what each says, the sweeps and sizes that test it here, and the page that reports it.

The statements and numbers are those of Raschka's *Practical Tips for Finetuning LLMs Using LoRA* (2023) and of the
questions it leaves open; the sweeps are the files of ``sweeps/article``. ``lora-lab reproduce`` runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.article.catalogue import sections
    from lora_lab.article.rendering import page, screen
    from lora_lab.article.reproduction import Reproduction
    from lora_lab.article.section import Section

__all__ = ["Reproduction", "Section", "page", "screen", "sections"]

__getattr__ = names(
    __name__,
    {
        "Reproduction": "reproduction",
        "Section": "section",
        "page": "rendering",
        "screen": "rendering",
        "sections": "catalogue",
    },
)
