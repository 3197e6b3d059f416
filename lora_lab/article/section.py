"""What one row of the article's claims is here: :class:`Section` and its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_lab.analysis.claims import Claim
from lora_lab.spec.tree import Pairs, pairs

if TYPE_CHECKING:
    from lora_lab.article.measured import Measurement

BUDGETS = ("smoke", "small", "full")
"""How much is trained: seconds on a random model, an hour or two of CPU, the article's own settings on a GPU."""


@dataclass(frozen=True)
class Part:
    """One sweep of a section: ``sweeps/article/<name>.yaml`` is its small budget.

    ``smoke`` and ``full`` are the overrides beside those that every part gets (:mod:`lora_lab.article.budgets`).
    ``own_data``: the sweep is about its data, and ``--data`` does not change it. ``planned``: its runs are for a GPU;
    a budget other than full only plans them. ``adapters``: all of them are wanted after the sweep; of other sweeps only
    the best trial's stay, for there are hundreds of runs.
    """

    name: str
    smoke: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    own_data: bool = False
    planned: bool = False
    adapters: bool = False

    @property
    def sweep(self) -> str:
        """The name that ``lora-lab sweep`` knows it by."""
        return f"article/{self.name}"


@dataclass(frozen=True)
class Sized:
    """A configuration whose memory is planned: overrides of the article's run, and the article's own GB.

    With ``sweep`` it is instead the run of that sweep at ``point``, whose adapter, gradients and optimizer state were
    measured while it trained, too.
    """

    label: str
    overrides: tuple[str, ...] = ()
    article_gb: float | None = None
    sweep: str | None = None
    point: Pairs = field(default_factory=pairs)


@dataclass(frozen=True)
class TableOf:
    """A table of one sweep: rows by columns of ``metric``, ``extras`` beside, and the article's words by row.

    ``over`` is what its runs repeat, where that is not seeds; ``ranked`` is false of numbers of which none is better
    than another.
    """

    sweep: str
    rows: tuple[str, ...] = ()
    columns: str | None = None
    metric: str = "eval_loss"
    extras: tuple[str, ...] = ("trainable_parameters", "lane_bytes", "seconds")
    baseline: Pairs = field(default_factory=pairs)
    article: Mapping[str, str] = field(default_factory=dict)
    over: str = "seeds"
    ranked: bool = True


@dataclass(frozen=True)
class ScoresOf:
    """A table of one sweep's benchmark scores, a row a metric: the base model's, and the mean over all its runs."""

    sweep: str


@dataclass(frozen=True)
class Section:
    """One row of the article's claims.

    ``says`` is the article's statement, ``here`` what is done about it. ``measured`` is what is measured of the trained
    adapters; claims and tables name its tables as they name sweeps.
    """

    id: str
    says: str
    here: str
    parts: tuple[Part, ...] = ()
    sizes: tuple[Sized, ...] = ()
    claims: tuple[Claim, ...] = ()
    tables: tuple[TableOf | ScoresOf, ...] = ()
    measured: Measurement | None = None

    @property
    def title(self) -> str:
        """``Q5 overfit``."""
        return self.id.replace("-", " ", 1)
