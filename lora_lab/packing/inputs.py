"""Tokens of a packed forward as index tensors: everything about it that depends on numbers in the data.

What comes after (:mod:`lora_lab.packing.forward`) never looks at a value, so it runs on tensors without data, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_lab.packing.layout import Layout

Sequences = Sequence[tuple[np.ndarray, np.ndarray]]
"""Token ids and, for each, whether it is a target: ``((t,) int64, (t,) bool)`` per sequence."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a packed forward is given, all on one device.

    ``ids`` are the ``(rows,)`` tokens of all sequences, one after another; ``predicting`` the ``(targets,)`` rows
    whose next token is a target, and ``labels`` those tokens. ``targets`` are the first and past-the-last target
    of each lane, as ``layout.spans`` are of its rows.
    """

    layout: Layout
    ids: Tensor
    predicting: Tensor
    labels: Tensor
    targets: list[tuple[int, int]]

    @staticmethod
    def of(groups: Sequence[Sequences], device: torch.device, kernels: str | None = None) -> Inputs:
        """The inputs of a forward in which each of ``groups`` is one lane's sequences.

        ``kernels`` as for :class:`Layout`.
        """
        sequences = [sequence for group in groups for sequence in group]
        layout = Layout([len(ids) for ids, _ in sequences], [len(group) for group in groups], device, kernels)
        ids = torch.from_numpy(np.concatenate([ids for ids, _ in sequences])).to(device)
        wanted = np.concatenate([np.append(supervised[1:], False) for _, supervised in sequences])
        predicting = torch.from_numpy(wanted.nonzero()[0]).to(device)
        bounds = [0, *itertools.accumulate(map(count_targets, groups))]
        return Inputs(layout, ids, predicting, ids[predicting + 1], list(itertools.pairwise(bounds)))


def count_targets(sequences: Sequences) -> int:
    """Supervised tokens: those that some earlier token predicts."""
    return sum(int(supervised[1:].sum()) for _, supervised in sequences)
