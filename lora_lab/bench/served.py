"""An adapter logged to MLflow, loaded back: what ``mlflow models`` and ``mlflow.pyfunc.load_model`` call.

The base model is loaded as for training (from its package, its folder, or the hub's cache), so nothing is asked of a
network where it is already on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab import models
from lora_lab.bench.generate import Prompts, generate
from lora_lab.data.records import Instruction
from lora_lab.data.tokenising import prompts
from lora_lab.files import read_json
from lora_lab.methods import load
from lora_lab.packing.paths import Mount
from lora_lab.spec import RunSpec, from_tree

if TYPE_CHECKING:
    import pandas as pd

NEW_TOKENS = 64
BATCH_SIZE = 8
"""Prompts answered together."""


class Served:
    """The adapter in ``folder`` on its base model, as MLflow's pyfunc flavour wants it."""

    def __init__(self, folder: Path) -> None:
        """``folder`` holds ``run.json`` (the run's spec) and ``adapter``.

        Raises:
            ModelError: the base model is not on this machine.
            CheckpointError: the adapter is damaged, or of another base model.
        """
        import torch

        self._spec = from_tree(RunSpec, read_json(folder / "run.json"))
        base = models.load(self._spec.model, "cuda" if torch.cuda.is_available() else "cpu")
        self._attachment = load(folder / "adapter", base)
        self._mount = Mount(base)

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """The greedy answers to the rows of ``model_input``: columns ``instruction`` and, if wanted, ``input``."""
        tokens = int((params or {}).get("max_new_tokens", NEW_TOKENS))
        inputs: Sequence[Any] = model_input["input"].tolist() if "input" in model_input else [""] * len(model_input)
        asked = [
            Instruction(str(instruction), str(text) if isinstance(text, str) else "", "")
            for instruction, text in zip(model_input["instruction"].tolist(), inputs, strict=True)
        ]
        ids = prompts(asked, self._spec.data, self._mount.base.tokenizer)
        (answers,) = generate(self._mount, [Prompts(self._attachment, ids)], tokens, BATCH_SIZE)
        return answers


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls, with the folder of the model's data."""
    return Served(Path(path))
