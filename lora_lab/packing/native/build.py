"""Builds the CPU kernels with the machine's own compiler, once, and loads them.

The library lies in the cache folder under a name made of its source, the flags and the processor. Where there is no
compiler the packed step computes the same with PyTorch's operations, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from lora_lab.models import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-shared",
    "-fPIC",
    # sums may be reordered, so that they vectorise; NaN and infinity keep their meaning
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
)
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
DISABLED = "LORA_LAB_NO_KERNELS"
"""Set in the environment, PyTorch's operations are used even where there is a compiler."""

log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, built if need be; ``None`` where they cannot be."""
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if os.environ.get(DISABLED) or compiler is None or platform.system() != "Linux":
        return None
    flags = (*FLAGS, *_more_flags())
    sources = [file.read_text() for file in sorted(SOURCE.parent.glob("*.[ch]pp"))]  # what it includes is part of it
    about = [*sources, *flags, compiler, torch.__version__, _processor()]
    digest = hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]
    path = cache_folder() / "kernels" / f"{digest}.so"
    try:
        if not path.exists():
            _compile(compiler, flags, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning("The CPU kernels could not be built, PyTorch's operations are used: %s", str(said).strip()[-500:])
        return None


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Beside its place first: another worker may be building the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        # PyTorch's own OpenMP, not the system's: two pools of threads would wait for each other's cores.
        openmp = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
        link = [str(openmp)] if openmp.exists() else []
        command = [compiler, *flags, "-o", str(made), str(SOURCE), *link]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(path)


def _more_flags() -> tuple[str, ...]:
    """Vector instructions that a compiler older than the processor does not derive from ``-march=native``."""
    features = set(_processor().split())
    if not features.issuperset(_AVX512):
        return ()
    more = ("-mavx512bf16",) if "avx512_bf16" in features else ()
    return (*(f"-m{name}" for name in _AVX512), *more, "-mprefer-vector-width=512")


@functools.cache
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.machine()
    lines = cpuinfo.read_text().splitlines()
    return " ".join(line.partition(":")[2].strip() for line in lines[:40] if line.startswith(("model name", "flags")))
