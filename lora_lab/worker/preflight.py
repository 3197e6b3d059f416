"""What is checked before any model is loaded, so that bad input costs seconds and loses nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lora_lab import data, models
from lora_lab.errors import SweepFolderError
from lora_lab.files import folder_errors
from lora_lab.spec import DataSpec, Mask, ModelSpec, RunSpec, Sweep, to_tree

SPARE_BYTES = 64 * 2**20
"""Free space a sweep's folder must have beside its adapters."""


def check_folder(folder: Path, need: int = 0) -> None:
    """Make ``folder`` and see that files can be written and ``need`` bytes fit.

    Raises:
        SweepFolderError: no permission, read-only, a file in the way, or too little space.
    """
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"lora-lab")
        free = shutil.disk_usage(folder).free
    if free < need + SPARE_BYTES:
        raise SweepFolderError(
            f"{folder}: {free / 1e6:,.0f} MB are free, and about {(need + SPARE_BYTES) / 1e6:,.0f} MB are needed. "
            "Free some space, or choose another place with sweep.dir=FOLDER."
        )


def check_runs(specs: Iterable[RunSpec]) -> None:
    """Check every data set and every base model (with all masks asked of it) that ``specs`` name, each once."""
    datasets: dict[str, DataSpec] = {}
    masks: dict[ModelSpec, set[Mask]] = {}
    for spec in specs:
        datasets[json.dumps(to_tree(spec.data), sort_keys=True)] = spec.data
        masks.setdefault(spec.model, set()).add(spec.method.mask)
    for dataset in datasets.values():
        data.check(dataset)
    for model, wanted in masks.items():
        models.check(model, sorted(wanted))


def points_to_check(sweep: Sweep) -> list[RunSpec]:
    """Runs that together name every data set, model and mask of a sweep's finite domains."""
    specs = [sweep.base]
    for path, domain in sweep.space.domains:
        specs += [sweep.base.at({path: value}) for value in getattr(domain, "values", ())]
    return specs
