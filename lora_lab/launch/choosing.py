"""Which launcher a sweep asks for; what it needs is imported when it is chosen."""

from __future__ import annotations

from lora_lab.launch.launcher import Launcher
from lora_lab.spec import Execution


def launcher_for(execution: Execution, *, tied: bool = True) -> Launcher:
    """The launcher that ``execution`` names. ``tied``: it stays, and local workers end with this process.

    Raises:
        LauncherError: an extra is not installed, or the scheduler cannot be reached.
    """
    name = execution.launcher.name
    if name == "slurm":
        from lora_lab.launch.slurm import Slurm

        return Slurm(execution)
    if name == "ray":
        from lora_lab.launch.ray import Ray

        return Ray(execution)
    from lora_lab.launch.processes import Processes

    return Processes(execution, tied=tied)
