"""How fast a device multiplies matrices: measured once, kept in the cache, and what a step takes at that rate."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from functools import lru_cache
from pathlib import Path

import torch

from lora_lab.errors import CheckpointError
from lora_lab.files import read_json, write_json
from lora_lab.models import cache_folder

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices: large enough for a device to show what it can, and on a processor so small that
one product takes milliseconds, some of which others leave alone: the rate is kept."""
SECONDS = 0.5
"""How long the measurement goes on, at most."""


def product_rate(kind: str, dtype: str, folder: Path | None = None) -> float | None:
    """FLOP/s of large matrix products in ``dtype`` on this machine's ``cpu`` or ``cuda``; ``None`` where it has none.

    Measured when first asked for, and kept in ``folder`` (default: the cache) by device and number of threads.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_name() if kind == "cuda" else f"{_processor()}, {torch.get_num_threads()} threads"
    made_of = {"device": device, "dtype": dtype, "torch": torch.__version__, "side": SIDE[kind]}
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    path = (folder or cache_folder() / "speed") / f"{name}.json"
    try:
        return float(read_json(path)["flops_per_second"])
    except (FileNotFoundError, CheckpointError, KeyError, TypeError, ValueError):  # not there, or damaged
        rate = _measured(kind, getattr(torch, dtype))
        write_json(path, made_of | {"flops_per_second": rate})
        return rate


def _measured(kind: str, dtype: torch.dtype) -> float:
    """The best of several products; the first one warms up."""
    side = SIDE[kind]
    a = torch.randn(side, side, device=kind).to(dtype)
    out = torch.mm(a, a)
    best, began = 0.0, time.perf_counter()
    while not best or time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        torch.mm(a, a, out=out)
        if kind == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2.0 * side**3 / (time.perf_counter() - started))
    return best


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags")
    found = {line.split(":")[0].strip(): line for line in lines if line.split(":")[0].strip() in wanted}
    bf16 = " ".join(flag for flag in ("amx_bf16", "avx512_bf16") if flag in found.get("flags", ""))
    return f"{found.get('model name', platform.machine()).split(':')[-1].strip()} {bf16}".strip()
