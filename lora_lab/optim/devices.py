"""Which optimizers a device can run; known before anything is loaded."""

from __future__ import annotations

from lora_lab.errors import SpecError
from lora_lab.spec import OptimizerSpec

CUDA_ONLY = ("paged_adamw8bit",)
"""Their pages move between a GPU's memory and the CPU's."""


def check_device(spec: OptimizerSpec, device: str) -> None:
    """Refuse an optimizer that ``device`` (``auto``, ``cpu``, ``cuda``, ``cuda:N``) cannot run.

    Raises:
        SpecError
    """
    if spec.name not in CUDA_ONLY:
        return
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        raise SpecError(
            f"optimizer.name={spec.name}: its pages move between a GPU's memory and the CPU's, and this would run on a "
            "CPU. Use optimizer.name=adamw8bit, which keeps the same averages, or a CUDA device."
        )
