"""Whether a run that is wider than a device finds as many as it wants."""

from __future__ import annotations

import os

from lora_lab.errors import SpecError
from lora_lab.planner.device import device_kind
from lora_lab.spec import RunSpec


def check_devices(spec: RunSpec, device: str) -> None:
    """Refuse a run that is divided into more parts than there are devices here: GPUs, or cores.

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
    import torch

    kind = device_kind(device)
    there = torch.cuda.device_count() if kind == "cuda" else os.cpu_count() or 1
    if spec.model.shards > there:
        what = "GPUs" if kind == "cuda" else "cores"
        raise SpecError(
            f"model.shards={spec.model.shards}: this process sees {there} {what}. Give it more (launcher.workers=1, or "
            f"launcher.gpus_per_worker={spec.model.shards}), or lower model.shards."
        )
