"""Whether a run that is wider than a device finds as many as it wants."""

from __future__ import annotations

import os

from lora_lab.errors import SpecError
from lora_lab.planner.device import device_kind
from lora_lab.spec import LauncherSpec, RunSpec


def check_devices(spec: RunSpec, device: str, launcher: LauncherSpec | None = None) -> None:
    """Refuse a run that is divided into more parts than its worker has devices: GPUs, or cores.

    The worker is this process, unless ``launcher`` starts others: of these only what it gives them is known here.

    Raises:
        SpecError
    """
    if not spec.model.divided:
        return
    if device.startswith("cuda:"):
        raise SpecError(
            f"device={device} and model.shard={spec.model.shard}: it takes GPUs 0 to {spec.model.shards - 1}. Use "
            "device=cuda, and CUDA_VISIBLE_DEVICES to choose among them."
        )
    if launcher is not None and (launcher.name != "local" or launcher.workers > 1):
        _check_given(spec.model.shards, device, launcher)
        if launcher.name != "local":
            return  # on another machine, perhaps
    import torch

    kind = device_kind(device)
    there = torch.cuda.device_count() if kind == "cuda" else os.cpu_count() or 1
    if spec.model.shards > there:
        what = "GPUs" if kind == "cuda" else "cores"
        raise SpecError(
            f"model.shards={spec.model.shards}: this process sees {there} {what}. Give it more (launcher.workers=1, or "
            f"launcher.gpus_per_worker={spec.model.shards}), or lower model.shards."
        )


def _check_given(shards: int, device: str, launcher: LauncherSpec) -> None:
    """Refuse ``shards`` of which a worker of ``launcher`` would have too few GPUs, where it is given GPUs at all."""
    if launcher.name == "slurm":
        gives = device != "cpu" and (launcher.gpus_per_node > 0 or device == "cuda")
    elif launcher.name == "ray":
        gives = device != "cpu" and launcher.gpus_per_worker > 0
    else:
        gives = device_kind(device) == "cuda"
    given = launcher.gpus_a_worker
    if gives and given < shards:
        raise SpecError(
            f"model.shards={shards}: a worker has {given} of the GPUs. Give launcher.gpus_per_worker={shards}, or "
            "lower model.shards."
        )
    if launcher.name == "slurm" and gives and 0 < launcher.gpus_per_node < shards:
        raise SpecError(
            f"model.shards={shards}: a job has launcher.gpus_per_node={launcher.gpus_per_node}. Give it {shards}, or "
            "lower model.shards."
        )
