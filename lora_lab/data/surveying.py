"""What a data set looks like to a model: lengths, what of it is learned, what was cut, left out or skipped."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.data.dataset import load
from lora_lab.data.order import packed
from lora_lab.data.split import Split, Tokenised
from lora_lab.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BINS = 10


@dataclass(frozen=True)
class Side:
    """One side in numbers; lengths are in tokens. ``histogram`` is ``(from, to, examples)``, both ends included."""

    examples: int
    tokens: int
    supervised_tokens: int
    truncated: int
    dropped: int
    repeated: int
    shortest: int
    median: float
    longest: int
    histogram: tuple[tuple[int, int, int], ...]

    @property
    def supervised_share(self) -> float:
        """Share of the tokens that are targets."""
        return self.supervised_tokens / self.tokens


@dataclass(frozen=True)
class Survey:
    """A data set in numbers, and a few examples as runs of ``(text, whether it is learned)``.

    ``duplicates`` are training examples that equal a held-out one; ``skipped`` rows could not be used, and ``told``
    says of the first ones where they stand and why. ``packed_rows`` is how many rows the training examples fill under
    ``data.pack``, else ``None``.
    """

    train: Side
    evaluation: Side
    duplicates: int
    skipped: int
    told: tuple[str, ...]
    packed_rows: int | None
    shown: tuple[tuple[tuple[str, bool], ...], ...]

    def to_tree(self) -> dict[str, Any]:
        """The JSON tree: one key a field."""
        sides = {
            name: dict(vars(side)) | {"supervised_share": side.supervised_share}
            for name, side in (("train", self.train), ("evaluation", self.evaluation))
        }
        shown = [[{"text": text, "learned": learned} for text, learned in runs] for runs in self.shown]
        return dict(vars(self)) | sides | {"shown": shown}


def survey(spec: DataSpec, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None, shown: int = 3) -> Survey:
    """Load a data set and look at it; the first ``shown`` training examples are decoded.

    Raises:
        DataError: see :func:`lora_lab.data.load`.
    """
    tokenised: Tokenised = load(spec, tokenizer, cache)
    train = tokenised.train
    return Survey(
        train=_side(train),
        evaluation=_side(tokenised.evaluation),
        duplicates=tokenised.duplicates,
        skipped=tokenised.skipped,
        told=tokenised.told,
        packed_rows=len(packed(train.lengths, spec.max_length, 0)) if spec.pack else None,
        shown=tuple(_runs(train, i, tokenizer) for i in range(min(shown, len(train)))),
    )


def _side(split: Split) -> Side:
    lengths = split.lengths
    supervised = sum(int(split.tokens(i)[1].sum()) for i in range(len(split)))
    prints = split.prints
    told_apart = prints[prints != 0]
    shortest = int(lengths.min())
    width = -(-(int(lengths.max()) - shortest + 1) // BINS)
    counts = np.bincount((lengths - shortest) // width)
    return Side(
        examples=len(split),
        tokens=int(lengths.sum()),
        supervised_tokens=supervised,
        truncated=split.truncated,
        dropped=split.dropped,
        repeated=len(told_apart) - len(np.unique(told_apart)),
        shortest=shortest,
        median=float(np.median(lengths)),
        longest=int(lengths.max()),
        histogram=tuple(
            (shortest + i * width, shortest + (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)
        ),
    )


def _runs(split: Split, i: int, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, bool], ...]:
    ids, supervised = split.tokens(i)
    pairs = zip(ids.tolist(), supervised.tolist(), strict=True)
    return tuple(
        (tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False), learned)
        for learned, run in groupby(pairs, key=lambda pair: pair[1])
    )
