"""What a run trains and is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec.checks import one_of, positive
from lora_lab.spec.tree import Pairs, pairs

DATA_NAMES = ("taskmix", "alpaca", "chat", "text", "hf")
TEMPLATES = ("chat", "chatml", "alpaca", "plain")


@dataclass(frozen=True)
class DataSpec:
    """A data set, its prompt template and its split.

    ``max_length`` is in tokens; ``train_size``/``eval_size`` in examples (``None``: all there are).
    ``seed`` fixes the data itself (generation, split) and is not the run's seed, which orders it.
    ``diversity`` (taskmix) is the number of task families mixed; ``tasks`` names them instead.
    ``columns`` maps the names wanted here to those in the file, e.g. ``output: response``.
    """

    name: str = "taskmix"
    path: str | None = None
    eval_path: str | None = None
    columns: Pairs = field(default_factory=pairs)
    template: str = "plain"
    mask_prompt: bool = True
    max_length: int = 128
    train_size: int | None = None
    eval_size: int | None = None
    seed: int = 0
    tasks: tuple[str, ...] = ()
    diversity: int | None = None

    def __post_init__(self) -> None:
        one_of("data.name", self.name, DATA_NAMES)
        one_of("data.template", self.template, TEMPLATES)
        positive("data.max_length", self.max_length)
        positive("data.train_size", self.train_size)
        positive("data.eval_size", self.eval_size)
        positive("data.diversity", self.diversity)
        if self.name != "taskmix" and not self.path:
            raise SpecError(f"data.path: data.name={self.name} needs one, e.g. data.path=train.jsonl.")
        if self.tasks and self.diversity is not None:
            raise SpecError("data.tasks and data.diversity both choose the task families; give one of them.")

    def canonical(self, tree: dict[str, Any]) -> None:
        """Drop from ``tree`` (this spec as a tree) what cannot matter to a run's result."""
        if self.name != "taskmix":
            tree.pop("tasks")
            tree.pop("diversity")
