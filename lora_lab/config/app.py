"""The Hydra application of single runs: output folders, ``--multirun``, ``--cfg`` and tab completion as everywhere.

Hydra reads its arguments from ``sys.argv`` and ends the process on errors; here both stop at this file.
Every job of a multirun is composed and checked before the first one starts.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig

from lora_lab.config.compose import (
    RUN_ROOT,
    VERSION_BASE,
    composed_run,
    device_of,
    memory_of,
    plain,
    run_of,
    run_root,
    store_root,
)
from lora_lab.config.overrides import parse, read_overrides
from lora_lab.config.places import conf_folder, options
from lora_lab.config.refusals import refusals
from lora_lab.config.schema import RUN
from lora_lab.spec import RunSpec


@dataclass(frozen=True)
class Job:
    """One composed run: its spec, Hydra's output folder for it, the device asked for and the bytes of it that may be
    used, and its own overrides."""

    spec: RunSpec
    folder: Path
    device: str
    memory: int | None
    overrides: tuple[str, ...]


class _Raised(BaseException):
    """Carries what a job raised past Hydra, which would print its own account of it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


QUIET: Mapping[str, Any] = {
    "job": {"name": "train"},
    "job_logging": {"root": {"level": "INFO", "handlers": ["file"]}},
    "hydra_logging": {"formatters": {"simple": {"format": "%(message)s"}}},
}
"""Hydra's settings here: the log of a job goes to its file only, the terminal belongs to the progress."""


def run_app(overrides: Sequence[str], do: Callable[[Job], None], *, multirun: bool = False) -> None:
    """Compose one run, or with ``multirun`` every combination of values given with commas, and ``do`` each.

    What ``do`` raises ends the multirun and is raised here. Hydra makes an output folder for each run
    (``hydra.run.dir``, ``hydra.sweep.dir``) and keeps the composed configuration in its ``.hydra/``.

    Raises:
        ConfigError, SpecError: a bad override, before anything has started.
    """
    said = read_overrides(RUN, overrides, multirun=multirun)
    for one in _combinations(said.hydra) if multirun else [said.hydra]:
        tree = composed_run(read_overrides(RUN, one))
        run_of(tree)
        device_of(tree)
        memory_of(tree)

    def task(config: DictConfig) -> None:
        tree, hydra_config = plain(config), HydraConfig.get()
        folder, own = Path(hydra_config.runtime.output_dir), tuple(hydra_config.overrides.task)
        try:
            do(Job(run_of(tree), folder, device_of(tree), memory_of(tree), own))
        except Exception as error:
            raise _Raised(error) from error

    _hydra([*(["--multirun"] if multirun else []), *said.hydra], task)


def show(overrides: Sequence[str], *flags: str) -> None:
    """Print what Hydra shows for ``flags``: ``--cfg job``, ``--info defaults``, ``--hydra-help``, …

    Raises:
        ConfigError: a bad override.
    """
    said = read_overrides(RUN, overrides)
    _hydra([*flags, *said.hydra], _nothing)


def complete() -> None:
    """Print the completions of the command line in ``$COMP_LINE`` (its first word is the program's name)."""
    _hydra(["--shell-completion", "query=bash"], _nothing)


def _nothing(config: DictConfig) -> None:
    """The task of commands that run none."""


def _combinations(lines: Sequence[str]) -> Iterator[list[str]]:
    """Every job of a multirun, as its overrides."""
    axes: list[list[str]] = []
    for line in lines:
        override = parse(line)
        if not override.is_sweep_override():
            axes.append([line])
            continue
        value: object = override.value()
        if isinstance(value, Glob):
            values: list[str] = value.filter(options(override.key_or_group))
        else:
            values = list(override.sweep_string_iterator())
        axes.append([f"{override.get_key_element()}={value}" for value in values])
    return map(list, itertools.product(*axes))


def _hydra(arguments: Sequence[str], task: Callable[[DictConfig], None]) -> None:
    store_root(RUN_ROOT, {**run_root(), "hydra": QUIET})
    main = hydra.main(config_path=str(conf_folder()), config_name=RUN_ROOT, version_base=VERSION_BASE)(task)
    with _arguments(arguments), _logging(), refusals({}):
        try:
            main()
        except _Raised as raised:
            raise raised.error from None


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """``sys.argv`` as Hydra shall read it, and errors raised as they are instead of printed."""
    kept, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["lora-lab", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = kept
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


@contextmanager
def _logging() -> Iterator[None]:
    """Logging as it was before Hydra configured it for its jobs, whose log files are closed."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in kept:
                handler.close()
        root.handlers[:] = kept
        root.setLevel(level)
