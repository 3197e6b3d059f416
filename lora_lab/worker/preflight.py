"""What is checked before any model is loaded, so that bad input costs seconds and loses nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lora_lab import data, models
from lora_lab.bench.finding import find
from lora_lab.errors import SweepFolderError
from lora_lab.files import folder_errors
from lora_lab.methods import target_modules
from lora_lab.methods.beginning import adapter_in
from lora_lab.optim.devices import check_device
from lora_lab.spec import LauncherSpec, Mask, MethodSpec, ModelSpec, RunSpec, Sweep
from lora_lab.worker.devices import check_devices

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


def check_runs(specs: Iterable[RunSpec], device: str = "auto", launcher: LauncherSpec | None = None) -> None:
    """Check every data set, benchmark task, adapter to begin with, base model, mask and layer subset that ``specs``
    name, each once, loading no weights, that ``device`` can run their optimizers, and that workers of ``launcher``
    (``None``: this process) have devices enough.

    Data is tokenised here, into the cache that the worker reads, because only then is it known to be enough.

    Raises:
        DataError, ModelError, MethodError, SpecError: what cannot be used, and how to mend it.
    """
    specs = list(specs)
    for spec in specs:
        check_devices(spec, device, launcher)
    for optimizer in dict.fromkeys(spec.optimizer for spec in specs):
        check_device(optimizer, device)
    for dataset in dict.fromkeys(spec.data for spec in specs):
        data.check(dataset)
    for evaluation in dict.fromkeys(spec.evaluation for spec in specs if spec.evaluation.tasks):
        find(evaluation)
    for folder in dict.fromkeys(folder for spec in specs for _, folder in spec.method.adapters):
        adapter_in(folder)
    masks: dict[ModelSpec, set[Mask]] = {}
    for spec in specs:
        masks.setdefault(spec.model, set()).add(spec.method.mask)
    for model, wanted in masks.items():
        models.check(model, sorted(wanted))
        _check_layers(model, [spec.method for spec in specs if spec.model == model])
        tokenizer = models.load_tokenizer(model)
        for dataset in dict.fromkeys(spec.data for spec in specs if spec.model == model):
            data.load(dataset, tokenizer, cache=models.cache_folder())


def _check_layers(model: ModelSpec, methods: Iterable[MethodSpec]) -> None:
    subsets = list(dict.fromkeys(method for method in methods if method.layers))
    if subsets:
        roles = models.role_modules(models.load_meta(model), model)
        for method in subsets:
            target_modules(roles, method, model.name)


def points_to_check(sweep: Sweep) -> list[RunSpec]:
    """Runs that together name every data set, model and mask of a sweep's finite domains."""
    specs = [sweep.base]
    for path, domain in sweep.space.domains:
        around = sweep.space.around(path, sweep.base)
        specs += [sweep.base.at(around | {path: value}) for value in getattr(domain, "values", ())]
    return specs
