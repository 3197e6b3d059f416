"""In which order a run sees its training examples: a pure function of its seed and the step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_lab.errors import SpecError


class BatchOrder:
    """The examples of every optimizer step: a fresh permutation per epoch, the last short batch of an epoch kept.

    Nothing is carried from step to step, so a run goes on from any step as if it had never stopped. The permutation of
    epoch ``e`` is ``Generator(PCG64(SeedSequence([seed, e]))).permutation(examples)``.

    Raises:
        ValueError: no examples, or an empty batch.
        SpecError: a negative seed.
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        if examples < 1 or batch_size < 1:
            raise ValueError(f"needs examples and a batch size of 1 or more, got {examples} and {batch_size}")
        if seed < 0:
            raise SpecError(f"seed: must be 0 or more, got {seed}.")
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-examples // batch_size)
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int) -> NDArray[np.int64]:
        """The indices of optimizer step ``step`` (from 0), shape ``(batch_size,)`` or shorter at an epoch's end."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size
        return self._permutation(epoch)[start : start + self.batch_size].copy()

    def epoch(self, step: int) -> float:
        """Epochs done after step ``step`` (from 0): 1.0 after the last step of the first epoch."""
        whole, steps = divmod(step + 1, self.steps_per_epoch)
        return whole + min(steps * self.batch_size, self.examples) / self.examples

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._last is None or self._last[0] != epoch:
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
            self._last = (epoch, generator.permutation(self.examples))
        return self._last[1]
