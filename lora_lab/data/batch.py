"""Examples of a split as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lora_lab.data.split import Split

IGNORED = -100
"""The label of a token that is not a target (``torch.nn.functional.cross_entropy``'s ``ignore_index``)."""


@dataclass(frozen=True, eq=False)
class Batch:
    """``n`` examples, padded on the right to the longest of them, ``t`` tokens."""

    input_ids: torch.Tensor
    """``(n, t)`` int64."""
    labels: torch.Tensor
    """``(n, t)`` int64, aligned with ``input_ids`` (not shifted); :data:`IGNORED` where a token is not a target."""
    lengths: torch.Tensor
    """``(n,)`` int64: tokens of each example before the padding."""


def collate(split: Split, indices: Sequence[int] | NDArray[np.int64], pad_id: int) -> Batch:
    """The examples ``indices`` of a split as one batch.

    ``pad_id`` may be the id of a token that also occurs in the text (often the end-of-sequence token): padding is told
    from text by ``lengths`` and ``labels``, never by id.

    Raises:
        IndexError: there is no such example.
        ValueError: no indices.
    """
    if len(indices) == 0:
        raise ValueError("a batch needs at least one example")
    rows = [split.tokens(int(i)) for i in indices]
    lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
    input_ids = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    for row, (ids, supervised) in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids)][supervised] = ids[supervised]
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels), torch.from_numpy(lengths))
