"""What a run trains and is evaluated on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import SpecError, nearest
from lora_lab.spec.checks import one_of, positive
from lora_lab.spec.tree import Pairs, from_tree, pairs, thaw

DATA_NAMES = ("taskmix", "alpaca", "chat", "completion", "text", "hf", "callable", "mixture")
TEMPLATES = ("chat", "chatml", "llama2", "alpaca", "plain", "raw", "jinja")
WITHOUT_PATH = ("taskmix", "callable", "mixture")
MIXED = (
    *("template", "jinja", "mask_prompt", "turns", "max_length", "truncate"),
    *("on_duplicate", "on_bad_row", "folds", "fold", "seed"),
)
"""Fields that the sources of a mixture take over from it where they do not say their own."""


@dataclass(frozen=True)
class DataSpec:
    """A data set, its prompt template, its split and the order in which it is seen.

    ``max_length`` is in tokens; ``train_size``/``eval_size`` in examples (``None``: all there are).
    ``seed`` fixes the data itself (generation, split) and is not the run's seed, which orders it.
    ``diversity`` (taskmix) is the number of task families mixed; ``tasks`` names them instead.
    ``columns`` maps the names wanted here to those in the file, e.g. ``output: response``.

    ``split``, ``revision`` and ``streaming`` are for the hub (``hf``); ``call`` is the ``_target_`` and the arguments
    of a Python function that gives rows (``callable``); ``sources`` names the parts of a ``mixture``, each a mapping of
    these fields and a ``weight``. ``jinja`` is the text, or the file, of the template ``jinja``.

    ``mask_prompt`` learns answers only, ``turns`` which of a conversation's: the ``last`` or ``all``.
    ``truncate`` is the side that is cut beyond ``max_length``; ``on_duplicate`` says what becomes of training examples
    that equal a held-out one, and ``on_bad_row`` of rows that cannot be read.

    With ``folds`` the data is divided into so many parts and ``fold`` (from 0) is held out; ``resplit_by_seed`` divides
    it anew for every seed of a run. ``pack`` fills rows of ``max_length`` tokens with several examples, and the batch
    sizes of the budget then count rows; ``order`` is ``shuffled``, or ``grouped`` by length.
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
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    call: Pairs = field(default_factory=pairs)
    sources: Pairs = field(default_factory=pairs)
    jinja: str | None = None
    turns: str = "last"
    truncate: str = "right"
    on_duplicate: str = "drop"
    on_bad_row: str = "error"
    folds: int | None = None
    fold: int = 0
    resplit_by_seed: bool = False
    pack: bool = False
    order: str = "shuffled"

    def __post_init__(self) -> None:
        one_of("data.name", self.name, DATA_NAMES)
        one_of("data.template", self.template, TEMPLATES)
        one_of("data.turns", self.turns, ("last", "all"))
        one_of("data.truncate", self.truncate, ("right", "left"))
        one_of("data.on_duplicate", self.on_duplicate, ("drop", "error", "keep"))
        one_of("data.on_bad_row", self.on_bad_row, ("error", "skip"))
        one_of("data.order", self.order, ("shuffled", "grouped"))
        for name in ("max_length", "train_size", "eval_size", "diversity"):
            positive(f"data.{name}", getattr(self, name))
        if self.name not in WITHOUT_PATH and not self.path:
            raise SpecError(f"data.path: data.name={self.name} needs one, e.g. data.path=train.jsonl.")
        if self.tasks and self.diversity is not None:
            raise SpecError("data.tasks and data.diversity both choose the task families; give one of them.")
        if (self.template == "jinja") != bool(self.jinja):
            raise SpecError(
                "data.template=jinja and data.jinja belong together: data.template=jinja data.jinja=prompt.jinja "
                "(a file, or the template itself); set data.jinja=null for another template."
            )
        if self.pack and self.order == "grouped":
            raise SpecError(
                "data.pack and data.order=grouped: packed rows have equal lengths already; give one of them."
            )
        if self.streaming and (self.train_size is None or self.eval_size is None):
            raise SpecError(
                "data.streaming reads as many rows as are needed: give data.train_size and data.eval_size, "
                "e.g. data.train_size=10000 data.eval_size=500."
            )
        self._check_source()
        self._check_folds()

    def _check_source(self) -> None:
        if self.name == "taskmix" and (self.path or self.eval_path):
            raise SpecError(
                f"data.path={self.path or self.eval_path}: data.name=taskmix makes its own examples and reads no file. "
                "Say what the file holds: data=alpaca, completion, chat or text."
            )
        if self.name in ("callable", "mixture") and (self.path or self.eval_path):
            raise SpecError(f"data.path: data.name={self.name} reads no file of its own; set it to null.")
        if self.name == "callable" and not isinstance(dict(self.call).get("_target_"), str):
            raise SpecError(
                "data.call._target_: data.name=callable needs the function that gives the rows, "
                "e.g. data.call._target_=my_package.my_module.rows."
            )
        if self.name == "mixture":
            if not self.sources:
                raise SpecError(
                    "data.sources: data.name=mixture needs the sources it mixes, e.g. "
                    "'data.sources={talk: {name: chat, path: talk.jsonl, weight: 3}, sums: {name: taskmix}}'."
                )
            self.parts()

    def _check_folds(self) -> None:
        if self.folds is None:
            if self.fold:
                raise SpecError(f"data.fold={self.fold}: needs data.folds, the number of parts, e.g. data.folds=5.")
        elif self.folds < 2 or not 0 <= self.fold < self.folds:
            raise SpecError(
                f"data.folds={self.folds} data.fold={self.fold}: 2 folds or more, numbered from 0 to folds - 1."
            )
        elif self.name == "taskmix":
            raise SpecError("data.folds: taskmix makes its held-out examples apart; use data.seed or resplit_by_seed.")
        elif self.eval_path or self.eval_size:
            given = "eval_path" if self.eval_path else "eval_size"
            raise SpecError(f"data.folds and data.{given} both say what is held out; set data.{given}=null.")
        if self.resplit_by_seed and self.name == "taskmix" and self.diversity is not None:
            raise SpecError(
                "data.resplit_by_seed with data.diversity would change the task families, too: name them by data.tasks."
            )

    def parts(self) -> dict[str, tuple[float, DataSpec]]:
        """The sources of a mixture by name, each with its weight.

        Raises:
            SpecError: a source that is no mapping or names an unknown field, a weight that is not positive.
        """
        found = {}
        for name, said in self.sources:
            where = f"data.sources.{name}"
            if not isinstance(said, Pairs):
                raise SpecError(f"{where}: a mapping such as {{name: alpaca, path: a.jsonl, weight: 1}}, got {said!r}.")
            tree = thaw(said)
            weight = tree.pop("weight", 1)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                raise SpecError(f"{where}.weight: must be a positive number, got {weight!r}.")
            fixed = [key for key in ("sources", "resplit_by_seed", "pack", "order", "on_duplicate") if key in tree]
            if tree.get("name") == "mixture" or fixed:
                raise SpecError(f"{where}.{(fixed or ['name'])[0]}: is said once, for the whole mixture.")
            known = ["weight", *(f.name for f in dataclasses.fields(self))]
            for key in tree:
                if key not in known:
                    raise SpecError(f"{where}.{key}: no such field{nearest(key, known)} Known: {', '.join(known)}.")
            own = {key: getattr(self, key) for key in MIXED if not (key == "jinja" and "template" in tree)}
            if tree.get("name", "taskmix") == "taskmix":
                own = {key: value for key, value in own.items() if key not in ("folds", "fold")}
            try:
                found[name] = (float(weight), from_tree(DataSpec, own | tree))
            except SpecError as error:
                raise SpecError(f"{where}: {error}") from error
        return found

    def at_seed(self, seed: int) -> DataSpec:
        """The data of the run with this seed: another split (or fold) where ``resplit_by_seed`` asks for it."""
        if not self.resplit_by_seed:
            return self
        if self.folds is not None:
            return dataclasses.replace(self, fold=(self.fold + seed) % self.folds, resplit_by_seed=False)
        return dataclasses.replace(self, seed=self.seed + seed, resplit_by_seed=False)

    def canonical(self, tree: dict[str, Any]) -> None:
        """Drop from ``tree`` (this spec as a tree) what cannot matter to a run's result.

        What was added after the first keys were made is absent where it has its default, so that those keys stay.
        """
        if self.name != "taskmix":
            tree.pop("tasks")
            tree.pop("diversity")
        later = [f for f in dataclasses.fields(self) if f.name in _LATER]
        for f in later:
            default = f.default if f.default is not dataclasses.MISSING else pairs()
            if getattr(self, f.name) == default or (f.name in _ONLY and self.name not in _ONLY[f.name]):
                tree.pop(f.name)
        if self.turns == "all" and not self.mask_prompt:
            tree.pop("turns")


_LATER = (
    *("split", "revision", "streaming", "call", "sources", "jinja", "turns", "truncate", "on_duplicate", "on_bad_row"),
    *("folds", "fold", "resplit_by_seed", "pack", "order"),
)
_ONLY = {
    "split": ("hf",),
    "revision": ("hf",),
    "streaming": ("hf",),
    "call": ("callable",),
    "sources": ("mixture",),
}
"""Fields that matter under these names only."""
