"""How much memory a device has left for a pack."""

from __future__ import annotations

import re
from pathlib import Path

from lora_lab.errors import SpecError

_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and statistics of this process's memory group: version 2, then version 1."""


def device_memory(device: str = "auto") -> int:
    """Bytes that a new pack may take on ``device`` now: what is free, within a container's limit.

    ``device`` is ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        SpecError: a device that is none of these, or CUDA where there is none.
    """
    kind = device_kind(device)
    if kind == "cpu":
        import psutil

        free = int(psutil.virtual_memory().available)
        limit = container_free()
        return free if limit is None else min(free, limit)
    import torch

    return int(torch.cuda.mem_get_info(torch.device("cuda" if device == "auto" else device))[0])


def device_size(device: str = "auto") -> int:
    """Bytes that ``device`` has in all, free or not, within a container's limit. Raises as :func:`device_memory`."""
    if device_kind(device) == "cpu":
        import psutil

        total = int(psutil.virtual_memory().total)
        limit = container_limit()
        return total if limit is None else min(total, limit)
    import torch

    return int(torch.cuda.mem_get_info(torch.device("cuda" if device == "auto" else device))[1])


def device_kind(device: str, present: bool = True) -> str:
    """``"cpu"`` or ``"cuda"``: what ``device`` comes to on this machine. Raises as :func:`device_memory`.

    With ``present=False`` a CUDA device need not be there: one can plan for another machine.
    """
    if device != "auto" and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise SpecError(f"device: {device!r} is not a device. Use auto, cpu, cuda or cuda:N.")
    if device == "cpu":
        return "cpu"
    if device != "auto" and not present:
        return "cuda"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    if int(device.partition(":")[2] or 0) >= count:
        raise SpecError(f"device: {device} is asked for, and torch sees {count} CUDA devices. Use device=cpu or auto.")
    return "cuda"


def container_free(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left under this container's memory limit; ``None`` where no limit is set.

    File pages that the kernel can drop at once (``inactive_file``) count as free.
    """
    for limit_name, used_name, stat_name in _CGROUPS:
        try:
            limit = (root / limit_name).read_text().strip()
            used = int((root / used_name).read_text())
            stat = dict(line.split()[:2] for line in (root / stat_name).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if _unlimited(limit):
            return None
        droppable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return max(0, int(limit) - used + droppable)
    return None


def container_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of this container's memory limit; ``None`` where no limit is set."""
    for limit_name, _, _ in _CGROUPS:
        try:
            limit = (root / limit_name).read_text().strip()
        except OSError:
            continue
        return None if _unlimited(limit) else int(limit)
    return None


def _unlimited(limit: str) -> bool:
    return limit == "max" or int(limit) >= 1 << 60
