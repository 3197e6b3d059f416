"""Hydra and OmegaConf in, specs out. The only room that knows a ``DictConfig``.

The names below are imported when they are first used: importing this room loads no Hydra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.config.app import run_app
    from lora_lab.config.compose import Composed, compose_run, compose_sweep
    from lora_lab.config.places import conf_folder, sweep_names, sweeps_folder

__all__ = ["Composed", "compose_run", "compose_sweep", "conf_folder", "run_app", "sweep_names", "sweeps_folder"]

__getattr__ = names(
    __name__,
    {
        "Composed": "compose",
        "compose_run": "compose",
        "compose_sweep": "compose",
        "conf_folder": "places",
        "run_app": "app",
        "sweep_names": "places",
        "sweeps_folder": "places",
    },
)
