"""Tokenised examples: :class:`Tokens` of a source, a :class:`Split` (one side) of them, and :class:`Tokenised`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Tokens:
    """Every row of one source, tokenised in its order. What is trained on and what is held out are rows of it.

    The arrays may be memory-mapped files: read them, never write to them.
    """

    ids: NDArray[np.int32]
    """Token ids of all rows one after the other, shape ``(tokens,)``."""
    supervised: NDArray[np.uint8]
    """1 for each token that is a target, shape ``(tokens,)``; never the first of a row: nothing comes before it."""
    offsets: NDArray[np.int64]
    """Row ``i`` is ``ids[offsets[i] : offsets[i + 1]]``, empty if it leaves nothing to learn; shape ``(rows + 1,)``."""
    prompt_lengths: NDArray[np.int32]
    """Tokens of each prompt, which comes first in its row; shape ``(rows,)``. 0 for running text."""
    full_lengths: NDArray[np.int32]
    """Tokens of each row before it was cut, 0 for one with a blank response; shape ``(rows,)``."""
    prints: NDArray[np.uint64]
    """:func:`lora_lab.data.records.fingerprint` of each row, shape ``(rows,)``; all 0 for running text."""
    texts: NDArray[np.uint8]
    """JSON (UTF-8) of the answers and the task families, a list of strings each."""
    digest: str
    """SHA-256 (hex) of everything that the tokens were made from."""
    running: bool
    """Whether it is running text in blocks."""
    skipped: int = 0
    """Rows of the source that could not be used and are not here."""
    told: tuple[str, ...] = ()
    """The first of them: where each stood and what was wrong."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape ``(rows,)``."""
        return np.diff(self.offsets)

    @cached_property
    def _texts(self) -> tuple[list[str], list[str]]:
        answers, tasks = json.loads(self.texts.tobytes())
        return answers, tasks

    @property
    def answers(self) -> list[str]:
        """The response of each row as text, untruncated."""
        return self._texts[0]

    @property
    def tasks(self) -> list[str]:
        """The task family of each row."""
        return self._texts[1]


@dataclass(frozen=True, eq=False)
class Split:
    """The tokenised examples of one side, in a fixed order: rows of one source, or of several (a mixture)."""

    sources: tuple[Tokens, ...]
    source: NDArray[np.int32]
    """For each example its place in ``sources``, shape ``(examples,)``."""
    row: NDArray[np.int64]
    """For each example its row there, shape ``(examples,)``."""
    labels: tuple[str, ...] = ()
    """What examples of each source are called where they name no task; empty for a single source."""
    truncated: int = 0
    """Examples that were cut to ``max_length`` tokens."""
    dropped: int = 0
    """Examples left out: an empty response, no token to learn after truncation, or an equal one held out."""

    @staticmethod
    def of(
        sources: tuple[Tokens, ...],
        source: NDArray[np.int32],
        row: NDArray[np.int64],
        labels: tuple[str, ...] = (),
        dropped: int = 0,
    ) -> Split:
        """The examples among these rows that have something to learn; the others count as dropped."""
        every = Split(sources, source, row)
        kept = every.lengths > 0
        cut = int((every._of_rows("full_lengths") > every.lengths)[kept].sum())
        return Split(sources, source[kept], row[kept], labels, cut, dropped + int((~kept).sum()))

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, shape ``(examples,)``."""
        return self._of_rows("lengths")

    @property
    def prints(self) -> NDArray[np.uint64]:
        """The fingerprint of each example, shape ``(examples,)``; 0 for running text."""
        return self._of_rows("prints").view(np.uint64)

    def _of_rows(self, name: str) -> NDArray[np.int64]:
        found = np.zeros(len(self), dtype=np.int64)
        for i, tokens in enumerate(self.sources):
            mine = self.source == i
            found[mine] = getattr(tokens, name)[self.row[mine]].astype(np.int64)
        return found

    @cached_property
    def answers(self) -> list[str]:
        """The response of each example as text, untruncated; empty for running text."""
        return [self.sources[s].answers[r] for s, r in self._places]

    @cached_property
    def tasks(self) -> list[str]:
        """The task family of each example (the name of its source in a mixture), empty where there is none."""
        return [self.sources[s].tasks[r] or (self.labels[s] if self.labels else "") for s, r in self._places]

    def of_task(self, task: str) -> Split:
        """The examples of one task family, in the same order."""
        mine = np.array([one == task for one in self.tasks], dtype=bool)
        return Split(self.sources, self.source[mine], self.row[mine], self.labels)

    @property
    def _places(self) -> list[tuple[int, int]]:
        return list(zip(self.source.tolist(), self.row.tolist(), strict=True))

    @property
    def generative(self) -> bool:
        """Whether there are prompts to answer, so that exact match can be scored; not so for running text."""
        return not all(self.sources[s].running for s in np.unique(self.source).tolist())

    @cached_property
    def prompts(self) -> list[list[int]]:
        """The token ids of each prompt alone, to generate from."""
        found = []
        for s, r in self._places:
            tokens = self.sources[s]
            start = int(tokens.offsets[r])
            found.append(tokens.ids[start : start + int(tokens.prompt_lengths[r])].tolist())
        return found

    def tokens(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Example ``i``: its token ids and which of them are targets, both of shape ``(tokens,)``.

        The first token is never a target: nothing comes before it.

        Raises:
            IndexError: there is no example ``i``.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        tokens, row = self.sources[self.source[i]], self.row[i]
        start, end = tokens.offsets[row], tokens.offsets[row + 1]
        return tokens.ids[start:end].astype(np.int64), tokens.supervised[start:end].astype(np.bool_)


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A data set ready for training: both sides, and a digest of everything they were made from."""

    train: Split
    evaluation: Split
    digest: str
    """SHA-256 (hex) of the records, the template, the tokenizer and the lengths: equal digests, equal tokens."""
    duplicates: int = 0
    """Training examples left out (or kept, under ``on_duplicate=keep``) because an equal one is held out."""

    @property
    def truncated(self) -> int:
        """Examples of both sides that were cut to ``max_length`` tokens."""
        return self.train.truncated + self.evaluation.truncated

    @property
    def dropped(self) -> int:
        """Examples of both sides that were left out."""
        return self.train.dropped + self.evaluation.dropped

    @property
    def skipped(self) -> int:
        """Rows of the sources that could not be used."""
        return sum(tokens.skipped for tokens in self._sources)

    @property
    def told(self) -> tuple[str, ...]:
        """The first skipped rows: where each stood and what was wrong."""
        return tuple(line for tokens in self._sources for line in tokens.told)

    @property
    def _sources(self) -> list[Tokens]:
        return list(
            {tokens.digest: tokens for split in (self.train, self.evaluation) for tokens in split.sources}.values()
        )
