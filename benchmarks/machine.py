"""The machine that a benchmark runs on: its facts, its matrix-product peak, and the memory a process takes.

python benchmarks/machine.py            # prints facts and peak as JSON
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
"""Processor features that decide how fast bfloat16 products are."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "optuna", "bitsandbytes")
ROWS = (256, 1024, 2048)
"""Rows of the products that the peak is looked for among."""
LARGEST = 2e10
"""FLOPs of the largest product tried: the peak is reached long before, and a head's takes seconds."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(device: str = "cpu") -> dict[str, Any]:
    """What a number needs beside it: processor, features, cores, memory, versions, date and command."""
    lines = _cpuinfo()
    flags = set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "processor": processor(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else "cpu",
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def processor() -> str:
    """The processor's model, where the system tells."""
    named = [line.partition(": ")[2] for line in _cpuinfo() if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# -- the peak ---------------------------------------------------------------------------------------------


def linear_shapes(model: nn.Module) -> list[tuple[int, int]]:
    """``(in, out)`` of every linear map of ``model``, each once."""
    return sorted({(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)})


def gemm_peak(
    shapes: Iterable[tuple[int, int]], dtype: torch.dtype, device: torch.device | str = "cpu", seconds: float = 0.05
) -> float:
    """FLOP/s of the fastest product ``(rows, in) x (in, out)`` among ``shapes``, with the threads torch has now.

    Each of :data:`ROWS` and shapes is given ``seconds`` and three tries, of which the fastest counts.
    """
    best = 0.0
    for inputs, outputs in shapes:
        weight = torch.randn(outputs, inputs, dtype=dtype, device=device)
        for rows in (rows for rows in ROWS if 2.0 * rows * inputs * outputs <= LARGEST):
            x = torch.randn(rows, inputs, dtype=dtype, device=device)
            flops = 2.0 * rows * inputs * outputs
            once = _seconds(x, weight, 1)
            repeats = max(1, int(seconds / 3 / max(once, 1e-6)))
            best = max(best, *(flops * repeats / _seconds(x, weight, repeats) for _ in range(3)))
    return best


def _seconds(x: torch.Tensor, weight: torch.Tensor, repeats: int) -> float:
    synchronise(x.device)
    started = time.perf_counter()
    for _ in range(repeats):
        nn.functional.linear(x, weight)
    synchronise(x.device)
    return time.perf_counter() - started


def synchronise(device: torch.device | str) -> None:
    """Wait until a CUDA device has done what it was given; nothing on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


# -- memory -----------------------------------------------------------------------------------------------


def forget_peak(device: torch.device | str = "cpu") -> None:
    """From here on :func:`peak_bytes` counts anew (where the system allows it; else since the process began)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    reset = Path("/proc/self/clear_refs")
    if os.access(reset, os.W_OK):
        reset.write_text("5")


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """The most memory since :func:`forget_peak`: allocated on CUDA, resident in this process on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def resident_bytes(device: torch.device | str = "cpu") -> int:
    """Memory in use now: allocated on CUDA, resident in this process on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def keep(path: Path, entries: list[dict[str, Any]]) -> None:
    """Append ``entries`` to the JSON list in ``path``; the file is replaced whole."""
    from lora_lab.files import write_text

    before = json.loads(path.read_text()) if path.exists() else []
    write_text(path, json.dumps(before + entries, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(cores())
    peak = gemm_peak([(576, 576), (576, 1536), (1536, 576)], torch.bfloat16)
    print(json.dumps(facts() | {"threads": torch.get_num_threads(), "bf16_gflops": round(peak / 1e9)}, indent=1))
