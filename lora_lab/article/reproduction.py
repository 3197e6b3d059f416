"""One reproduction of the article: its budget, model and data, the folder it lies in, and what was found so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.article.budgets import ordered, overrides_of
from lora_lab.article.catalogue import parts_of
from lora_lab.article.findings import found
from lora_lab.article.machine import machine
from lora_lab.article.measured import frames_of
from lora_lab.article.prepared import prepare
from lora_lab.article.section import Part, Section
from lora_lab.article.sizing import sizes_of
from lora_lab.config import Composed, compose_sweep
from lora_lab.errors import BadInput, CheckpointError
from lora_lab.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

SMOKE_SCALE = 0.1
"""The share of the prepared files that the smoke budget makes."""


@dataclass(frozen=True)
class Reproduction:
    """What ``lora-lab reproduce`` was asked for.

    ``overrides`` are the user's own, for every sweep; ``folder`` holds a folder for each sweep, the prepared ``data/``
    and ``evidence.json``.
    """

    budget: str
    folder: Path
    data: str
    model: str | None = None
    overrides: tuple[str, ...] = ()

    def compose(self, part: Part) -> Composed:
        """The sweep of a part under this budget; the files it reads are written first.

        Raises:
            ConfigError, SpecError, DataError: what was given cannot be used.
        """
        prepare(part, self.folder / "data", self.data, scale=SMOKE_SCALE if self.budget == "smoke" else 1.0)
        said = overrides_of(part, self.budget, self.model, self.data, self.folder)
        return compose_sweep(part.sweep, ordered([*said, *self.overrides]))

    def trained(self, section: Section) -> list[Part]:
        """The sweeps of a section that this budget trains."""
        return [part for part in section.parts if not part.planned or self.budget == "full"]

    def to_train(self, chosen: Sequence[Section]) -> dict[str, Composed]:
        """The sweeps of these sections by name, each once."""
        return {part.name: self.compose(part) for part in parts_of(chosen) if not part.planned or self.budget == "full"}

    def judge(self, section: Section, command: str, say: Callable[[str], None]) -> dict[str, Any]:
        """Judge a section by what lies in the folder, and keep that in ``evidence.json``; its tree there.

        What cannot be measured of its adapters is left out, and ``say`` is told why.
        """
        frames = self._frames(section)
        if section.measured is not None and all(part in frames for part in section.measured.parts):
            try:
                frames |= frames_of(section.measured, self.folder, self.budget, say)
            except (BadInput, CheckpointError) as error:  # hours of other sections are not lost for it
                say(f"{section.id}: not measured: {error}")
        sizes = sizes_of(section.sizes, frames, self.folder, say)
        tree = found(section, frames, sizes).to_tree()
        evidence = self.evidence() | {
            "command": command,
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "budget": self.budget,
            "model": self._model(section),
            "data": "the built-in tasks (taskmix)" if self.data == "taskmix" else Path(self.data).name,
        }
        evidence["sections"] = {**evidence.get("sections", {}), section.id: tree}
        write_json(self.folder / "evidence.json", evidence)
        return tree

    def evidence(self) -> dict[str, Any]:
        """What was found so far."""
        try:
            return dict(read_json(self.folder / "evidence.json"))
        except FileNotFoundError:
            return {"sections": {}}

    def _frames(self, section: Section) -> dict[str, pd.DataFrame]:
        from lora_lab.analysis import read_results, read_sweep, results_frame

        frames = {}
        for folder in (self.folder / part.name for part in section.parts):
            results = read_results(folder) if (folder / "sweep.json").is_file() else []
            if results:  # of others the finding says that there are none yet
                frames[folder.name] = results_frame(read_sweep(folder), results)
        return frames

    def _model(self, section: Section) -> str:
        from lora_lab.article.budgets import model_overrides

        if self.model is not None:
            return model_overrides(self.model)[-1].partition("=")[2]
        return {"smoke": "tiny", "small": "smollm2_135m", "full": "llama2_7b"}[self.budget]
