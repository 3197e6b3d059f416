"""Base models: where they come from, their tokenizer, and which module plays which role.

Importing this package loads nothing heavy; each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.models.base import BaseModel, load, load_meta, total_parameters, untie
    from lora_lab.models.cache import cache_folder
    from lora_lab.models.checks import check
    from lora_lab.models.quantised import constants, frozen_dtype, frozen_weight, original_size, quantise
    from lora_lab.models.roles import check_mask, role_modules
    from lora_lab.models.tokenizer import load_tokenizer
    from lora_lab.models.wheel import is_prepared, prepare

__all__ = [
    "BaseModel",
    "cache_folder",
    "check",
    "check_mask",
    "constants",
    "frozen_dtype",
    "frozen_weight",
    "is_prepared",
    "load",
    "load_meta",
    "load_tokenizer",
    "original_size",
    "prepare",
    "quantise",
    "role_modules",
    "total_parameters",
    "untie",
]

__getattr__ = names(
    __name__,
    {
        "BaseModel": "base",
        "cache_folder": "cache",
        "check": "checks",
        "check_mask": "roles",
        "constants": "quantised",
        "frozen_dtype": "quantised",
        "frozen_weight": "quantised",
        "is_prepared": "wheel",
        "load": "base",
        "load_meta": "base",
        "load_tokenizer": "tokenizer",
        "original_size": "quantised",
        "prepare": "wheel",
        "quantise": "quantised",
        "role_modules": "roles",
        "total_parameters": "base",
        "untie": "base",
    },
)
