"""Tokenised examples: :class:`Split` (one side, flat arrays) and :class:`Tokenised` (both sides)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Split:
    """The tokenised examples of one side, in a fixed order.

    The arrays may be memory-mapped files: read them, never write to them.
    """

    ids: NDArray[np.int32]
    """Token ids of all examples one after the other, shape ``(tokens,)``."""
    offsets: NDArray[np.int64]
    """Example ``i`` is ``ids[offsets[i] : offsets[i + 1]]``; shape ``(examples + 1,)``."""
    prompt_lengths: NDArray[np.int32]
    """Tokens of each prompt, which comes first in its example; shape ``(examples,)``. 0 for running text."""
    answers: list[str]
    """The response of each example as text, untruncated; empty for running text."""
    tasks: list[str]
    """The task family of each example, empty where the source knows none."""
    mask_prompt: bool
    """Whether only the response (and the end-of-sequence token) is supervised."""
    truncated: int = 0
    """Examples whose response was cut at ``max_length`` tokens."""
    dropped: int = 0
    """Examples left out: an empty response, no token to learn after truncation, or an equal one held out."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, shape ``(examples,)``."""
        return np.diff(self.offsets)

    @property
    def generative(self) -> bool:
        """Whether there are prompts to answer, so that exact match can be scored; not so for running text."""
        return any(self.answers)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """The token ids of each prompt alone, to generate from."""
        starts = self.offsets[:-1]
        return [
            self.ids[start : start + length].tolist() for start, length in zip(starts, self.prompt_lengths, strict=True)
        ]

    def tokens(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Example ``i``: its token ids and which of them are targets, both of shape ``(tokens,)``.

        The first token is never a target: nothing comes before it.

        Raises:
            IndexError: there is no example ``i``.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        ids = self.ids[self.offsets[i] : self.offsets[i + 1]].astype(np.int64)
        return ids, np.arange(len(ids)) >= self._first_targets[i]

    @cached_property
    def _first_targets(self) -> NDArray[np.int32]:
        if self.mask_prompt:
            return np.maximum(self.prompt_lengths, np.int32(1))
        return np.ones_like(self.prompt_lengths)


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A data set ready for training: both sides, and a digest of everything they were made from."""

    train: Split
    evaluation: Split
    digest: str
    """SHA-256 (hex) of the records, the template, the tokenizer and the lengths: equal digests, equal tokens."""

    @property
    def truncated(self) -> int:
        """Examples of both sides whose response was cut at ``max_length`` tokens."""
        return self.train.truncated + self.evaluation.truncated

    @property
    def dropped(self) -> int:
        """Examples of both sides that were left out."""
        return self.train.dropped + self.evaluation.dropped
