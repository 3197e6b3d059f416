"""In which order a run sees its training examples: a pure function of its seed and the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_lab.data.split import Split
from lora_lab.errors import SpecError
from lora_lab.spec import DataSpec

GROUPED_BATCHES = 50
"""Batches within which ``data.order=grouped`` sorts by length: enough to even it out, few enough to stay random."""


class BatchOrder:
    """The rows of every optimizer step: a fresh permutation per epoch, the last short batch of an epoch kept.

    A row is an example, or several that are packed into one. Nothing is carried from step to step, so a run goes on
    from any step as if it had never stopped. The permutation of epoch ``e`` is
    ``Generator(PCG64(SeedSequence([seed, e]))).permutation(rows)``. With ``lengths``, the rows of fifty batches at a
    time are sorted by length and cut into batches, and these are shuffled.

    Args:
        rows: how many rows there are.
        batch_size: rows of one optimizer step.
        seed: the run's.
        lengths: tokens of each row, shape ``(rows,)``, to group rows of like length; ``None``: in random order.
        bins: the examples of each row, where rows are packed.

    Raises:
        ValueError: no rows, or an empty batch.
        SpecError: a negative seed.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int,
        *,
        lengths: NDArray[np.int64] | None = None,
        bins: Sequence[NDArray[np.int64]] | None = None,
    ) -> None:
        if rows < 1 or batch_size < 1:
            raise ValueError(f"needs examples and a batch size of 1 or more, got {rows} and {batch_size}")
        if seed < 0:
            raise SpecError(f"seed: must be 0 or more, got {seed}.")
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-rows // batch_size)
        self._lengths, self._bins = lengths, bins
        self._last: tuple[int, NDArray[np.int64]] | None = None

    @staticmethod
    def of(split: Split, spec: DataSpec, batch_size: int, seed: int) -> BatchOrder:
        """The order that ``spec`` asks for (``pack``, ``order``) over the examples of ``split``."""
        if spec.pack:
            bins = packed(split.lengths, spec.max_length, seed)
            return BatchOrder(len(bins), batch_size, seed, bins=bins)
        return BatchOrder(len(split), batch_size, seed, lengths=split.lengths if spec.order == "grouped" else None)

    def batch(self, step: int) -> NDArray[np.int64]:
        """The rows of optimizer step ``step`` (from 0), shape ``(batch_size,)`` or shorter at an epoch's end."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size
        return self._permutation(epoch)[start : start + self.batch_size].copy()

    def micro_batches(self, step: int, size: int) -> list[NDArray[np.int64]]:
        """The examples of optimizer step ``step``, ``size`` rows at a time."""
        rows = self.batch(step)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        if self._bins is None:
            return parts
        bins = self._bins
        return [np.concatenate([bins[row] for row in part.tolist()]) for part in parts]

    def epoch(self, step: int) -> float:
        """Epochs done after step ``step`` (from 0): 1.0 after the last step of the first epoch."""
        whole, steps = divmod(step + 1, self.steps_per_epoch)
        return whole + min(steps * self.batch_size, self.rows) / self.rows

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._last is None or self._last[0] != epoch:
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
            order = generator.permutation(self.rows)
            if self._lengths is not None:
                order = self._grouped(order, self._lengths, generator)
            self._last = (epoch, order)
        return self._last[1]

    def _grouped(
        self, order: NDArray[np.int64], lengths: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        size = GROUPED_BATCHES * self.batch_size
        for start in range(0, len(order), size):
            group = order[start : start + size]
            order[start : start + size] = group[np.argsort(lengths[group], kind="stable")]
        whole = len(order) // self.batch_size  # the short batch stays last
        batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)
        return np.concatenate([generator.permutation(batches).ravel(), order[whole * self.batch_size :]])


def packed(lengths: NDArray[np.int64], room: int, seed: int) -> list[NDArray[np.int64]]:
    """Examples by the row they are packed into, each row at most ``room`` tokens.

    The examples, shuffled by ``seed``, go one after another into the fullest open row that has room for them (best
    fit); a row that no example fits any more is left. Attention stays inside each example and positions restart
    (:mod:`lora_lab.packing`), so that the loss of a packed row is the loss of its examples.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, len(lengths), room])))
    by_room: list[list[list[int]]] = [[] for _ in range(room + 1)]  # open rows by the tokens still free
    free = np.zeros(room + 1, dtype=np.int64)  # how many open rows of each
    shortest = int(lengths.min())
    rows: list[list[int]] = []
    for example in generator.permutation(len(lengths)).tolist():
        need = min(int(lengths[example]), room)
        left = need + int(np.argmax(free[need:] > 0))
        if free[left]:
            row = by_room[left].pop()
            free[left] -= 1
        else:
            left, row = room, []
            rows.append(row)
        row.append(example)
        if left - need >= shortest:
            by_room[left - need].append(row)
            free[left - need] += 1
    return [np.array(row, dtype=np.int64) for row in rows]
