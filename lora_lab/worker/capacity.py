"""How much goes into a pack here: what the planner says of runs before their base is loaded, and what others took."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_lab import data, models
from lora_lab.analysis.folder import read_results
from lora_lab.data import Split
from lora_lab.errors import LoraLabError
from lora_lab.planner import device_memory, refusal
from lora_lab.planner.correction import correction
from lora_lab.planner.device import device_kind, device_size
from lora_lab.planner.lanes import Trace, peak_together
from lora_lab.planner.prediction import HEADROOM, devices
from lora_lab.planner.shape import Shape
from lora_lab.planner.tracing import trace
from lora_lab.spec import DataSpec, Execution, ModelSpec, RunSpec

ROUND = 8
"""Lengths are rounded up to multiples of this, so that runs on nearly equal data are planned once."""

GPUS_VARIABLE = "LORA_LAB_GPUS"
"""Environment variable with the number of GPUs that this machine's workers share, of which a worker sees its own."""

WITHOUT_LIMIT = 1 << 60
"""Bytes held against a plan of which only the size is wanted."""

log = logging.getLogger(__name__)


@dataclass
class Capacity:
    """What fits a device, for one of the ``sharers`` workers that use it together.

    ``memory`` is what ``device.memory`` says, in bytes (``None``: what is free when it is first asked for), ``lanes``
    what ``pack.max_lanes`` says (``None``: the planner decides). ``folder`` is the sweep's, whose settled runs tell how
    predictions were off. A plan that cannot be made (a model that cannot be
    traced) refuses nothing and limits nothing, and says so in the log once.
    """

    device: str = "auto"
    memory: int | None = None
    sharers: int = 1
    folder: Path | None = None
    lanes: int | None = None
    _free: int | None = None
    _correction: float = 1.0
    _lengths: dict[tuple[ModelSpec, DataSpec], tuple[int, int]] = field(default_factory=dict)
    _traces: dict[tuple[RunSpec, int, int], Trace | None] = field(default_factory=dict)

    @staticmethod
    def of(execution: Execution) -> Capacity:
        """The capacity that ``execution`` gives each of its workers."""
        folder = Path(execution.folder)
        return Capacity(execution.device, execution.device_memory, sharers(execution), folder, execution.max_lanes)

    @property
    def free(self) -> int:
        """Bytes that this worker may fill: asked of the device once, before anything is loaded."""
        if self._free is None:
            self._free = (self.memory or device_memory(self.device)) // self.sharers
        return self._free

    def learn(self) -> float:
        """Look at what the sweep's runs on this device took; returns by what predictions are multiplied from now on."""
        results = read_results(self.folder) if self.folder is not None else []
        self._correction = correction(measured(results, device_label(self.device)))
        return self._correction

    def refusal(self, spec: RunSpec) -> str | None:
        """Why ``spec`` can never be trained here, not even one example at a time, and what would help; else ``None``.

        Raises:
            LoraLabError: its data, model or method cannot be used.
        """
        found = self._trace(smallest(spec))
        if found is None:
            return None
        memory = (self.memory or device_size(self.device)) // self.sharers
        if found.peak() * self._correction <= memory * devices(spec, device_kind(self.device)) * (1 - HEADROOM):
            return None
        length, supervised = self._longest(spec)
        return refusal(
            spec,
            memory,
            device=self.device,
            correction=self._correction,
            length=length,
            supervised=supervised,
        )

    def halvings(self, spec: RunSpec, given: int) -> int:
        """How often to halve the micro-batch of ``spec`` so that it fits alone; at least ``given`` times."""
        for halvings in range(given, spec.budget.micro.bit_length()):
            if self.fits([in_smaller_parts(spec, halvings)]):
                return halvings
        return given

    def joins(self, spec: RunSpec, company: Sequence[RunSpec]) -> bool:
        """Whether a run may join a pack of others; always, where the lanes were counted by hand."""
        return self.lanes is not None or self.fits([*company, spec])

    def fits(self, company: Sequence[RunSpec]) -> bool:
        """Whether the runs, all of one base, can train together."""
        needed = self.predicted(company)
        free = self.free * devices(company[0], device_kind(self.device))
        return needed is None or needed * self._correction <= free * (1 - HEADROOM)

    def predicted(self, company: Sequence[RunSpec]) -> int | None:
        """Bytes at the peak of a pack of these runs; ``None`` where it cannot be planned."""
        traces = [found for spec in company if (found := self._trace(spec)) is not None]
        return peak_together(traces) if traces and len(traces) == len(company) else None

    def weights(self, spec: RunSpec) -> int:
        """Bytes of the run's base model, as planned; 0 where it cannot be planned."""
        found = self._trace(spec)
        parts: Mapping[str, int] = {} if found is None else found.parts()
        return sum(size for part, size in parts.items() if part.endswith("weights") or part.startswith("quantisation"))

    def _trace(self, spec: RunSpec) -> Trace | None:
        length, supervised = self._longest(spec)
        key = replace(spec, seed=0), length, supervised
        if key not in self._traces:
            try:
                self._traces[key] = trace(Shape.of(spec, device_kind(self.device), length, supervised))
            except LoraLabError:
                raise
            except Exception as error:  # a plan is advice: what can be trained is not lost over it
                log.warning("%s with %s cannot be planned: %s", spec.model.name, spec.method.name, error)
                self._traces[key] = None
        return self._traces[key]

    def _longest(self, spec: RunSpec) -> tuple[int, int]:
        """Tokens and targets of the longest training sequences of the run's data, rounded up."""
        dataset = spec.data.at_seed(spec.seed)
        key = spec.model, dataset
        if key not in self._lengths:
            tokens = data.load(dataset, models.load_tokenizer(spec.model), cache=models.cache_folder()).train
            most = int(tokens.lengths.max()), int(targets(tokens).max())
            length, supervised = (min(-(-n // ROUND) * ROUND, dataset.max_length) for n in most)
            self._lengths[key] = length, supervised
        return self._lengths[key]


def sharers(execution: Execution) -> int:
    """How many workers use one device together, at most: the CPU all of a machine's, a GPU those that are given it."""
    launcher, device = execution.launcher, execution.device
    if launcher.name == "ray":
        return max(1, int(1 / launcher.gpus_per_worker)) if launcher.gpus_per_worker > 0 else 1
    if launcher.name != "local":
        return 1
    if device not in ("auto", "cuda") or device_kind(device) == "cpu":
        return launcher.workers
    import torch

    gpus = int(os.environ.get(GPUS_VARIABLE) or torch.cuda.device_count())
    if gpus == 0:  # the launcher found none to give, and all take the first that torch finds
        return launcher.workers
    return max(1, -(-launcher.workers * min(launcher.gpus_a_worker, gpus) // gpus))


def targets(split: Split) -> np.ndarray:
    """Supervised tokens of each example, ``(examples,)``."""
    found = np.zeros(len(split), dtype=np.int64)
    for place, tokens in enumerate(split.sources):
        ahead = np.concatenate([[0], np.cumsum(tokens.supervised, dtype=np.int64)])
        mine = split.source == place
        rows = split.row[mine]
        found[mine] = ahead[tokens.offsets[rows + 1]] - ahead[tokens.offsets[rows]]
    return found


def measured(results: Iterable[Mapping[str, Any]], device: str) -> list[tuple[int, int]]:
    """Predicted and measured bytes of the results that were trained on ``device``."""
    mine = [tree for tree in results if tree.get("device") == device]
    return [(tree["predicted_bytes"], tree["training_bytes"]) for tree in mine]


def device_label(device: str) -> str:
    """What tells devices apart that take different amounts for the same: ``cpu``, or the GPU's name."""
    import torch

    if device_kind(device) == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(None if device in ("auto", "cuda") else device)


def smallest(spec: RunSpec) -> RunSpec:
    """``spec`` with one example in a forward."""
    return replace(spec, budget=replace(spec.budget, micro_batch_size=1))


def in_smaller_parts(spec: RunSpec, halvings: int) -> RunSpec:
    """``spec`` with its micro-batch halved so often, one example at least; the batch of a step stays as it is."""
    if halvings == 0:
        return spec
    return replace(spec, budget=replace(spec.budget, micro_batch_size=max(1, spec.budget.micro >> halvings)))
