"""Hydra and OmegaConf in, specs out. The only room that knows a ``DictConfig``.

The names below are imported when they are first used: importing this room loads no Hydra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.config.app import run_app
    from lora_lab.config.compose import Composed, compose_run, compose_sweep
    from lora_lab.config.places import conf_folder, sweep_names, sweeps_folder

__all__ = ["Composed", "compose_run", "compose_sweep", "conf_folder", "run_app", "sweep_names", "sweeps_folder"]

_HOMES = {
    "Composed": "lora_lab.config.compose",
    "compose_run": "lora_lab.config.compose",
    "compose_sweep": "lora_lab.config.compose",
    "conf_folder": "lora_lab.config.places",
    "run_app": "lora_lab.config.app",
    "sweep_names": "lora_lab.config.places",
    "sweeps_folder": "lora_lab.config.places",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_lab.config' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
