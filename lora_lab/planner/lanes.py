"""What a traced lane holds, and what a pack of such lanes holds at its peak."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from lora_lab.packing.head import block_rows
from lora_lab.packing.passes import passes
from lora_lab.planner.timeline import Crest

PARTS = (
    "weights",
    "quantised_weights",
    "quantisation_constants",
    "adapters",
    "gradients",
    "optimizer",
    "logits",
    "workspace",
    "activations",
)
"""What a peak is made of. ``quantisation_constants`` are the scales and code tables of quantised weights;
``adapters`` what trains, and a copy of the best of it so far where a run is evaluated on its way;
``activations`` what the forward keeps for the backward, their gradients and casts; ``logits`` the same of the head;
``workspace`` what one lane after the other, or one layer after the other, makes for a moment."""

SHARED = ("weights", "quantised_weights", "quantisation_constants", "workspace")
"""Parts that a pack holds once, however many lanes it has; of the others each lane has its own."""

KEPT = ("adapters", "optimizer")
"""Parts that a lane holds all the time, and not only while its rows go through the base."""

MOST_LANES = 4096
"""Lanes beyond which nobody asks how many fit."""


@dataclass(frozen=True)
class Trace:
    """A traced step of one lane; ``flops`` are those of one forward and backward.

    ``crests`` are the moments that can be the peak for some number of lanes. ``own_bytes`` are those of the trainable
    parameters, and of their gradients, ``best_bytes`` those of the best adapter so far, where it is kept beside the one
    that trains. ``rows`` tokens of a lane go through the base at once, and ``targets`` of them
    are supervised; ``alone`` says that no other lane's go with them, ``keeps_logits`` that its logits are held until
    its backward.
    """

    trainable_parameters: int
    total_parameters: int
    by_role: tuple[tuple[str, int], ...]
    crests: tuple[Crest, ...]
    flops: float
    own_bytes: int
    best_bytes: int
    rows: int
    targets: int
    alone: bool
    keeps_logits: bool
    device: str

    def parts(self, lanes: int = 1) -> dict[str, int]:
        """Bytes by part at the peak of a pack of so many such lanes.

        Lanes that go through the base in another pass hold no activations meanwhile, and all of their gradients.
        """
        together = self._together(lanes)
        return max((self._at(crest, lanes, together) for crest in self.crests), key=lambda held: sum(held.values()))

    @property
    def lane_bytes(self) -> int:
        """Bytes of what a lane adds to its base: what trains, as much of gradients, and the optimizer's state."""
        kept = self.parts()
        return kept["adapters"] - self.best_bytes + self.own_bytes + kept["optimizer"]

    def peak(self, lanes: int = 1) -> int:
        """Bytes at the peak of a pack of so many such lanes."""
        return sum(self.parts(lanes).values())

    def lanes_in(self, budget: int) -> int:
        """How many such lanes stay within ``budget`` bytes; 0 when not even one does."""
        if self.peak(1) > budget:
            return 0
        too_many = 2
        while too_many <= MOST_LANES and self.peak(too_many) <= budget:
            too_many *= 2
        return bisect.bisect_right(range(1, too_many), budget, key=self.peak)

    def _together(self, lanes: int) -> int:
        alone = range(lanes) if self.alone else ()
        return max(map(len, passes([self.rows] * lanes, self.device, alone)))

    def _at(self, crest: Crest, lanes: int, together: int) -> dict[str, int]:
        held = {part: crest.parts.get(part, 0) for part in PARTS}
        for part in PARTS:
            if part not in SHARED:
                held[part] *= lanes if part in KEPT else together
        held["gradients"] += self.own_bytes * (lanes - together)
        held["adapters"] += self.best_bytes * lanes
        if not self.keeps_logits:  # a block of them at a time, of whichever lanes
            block = block_rows(self.device)
            one = min(self.targets, block)
            held["logits"] = crest.parts.get("logits", 0) * min(together * self.targets, block) // one
        return held


def peak_together(traces: Sequence[Trace]) -> int:
    """Bytes at the peak of a pack of lanes of one base that take as ``traces`` say: exact where all are alike.

    Of different ones it is the most that there can be: every lane of a pass at its own peak at one moment.
    """
    first = traces[0]
    if all(other == first for other in traces):
        return first.peak(len(traces))
    alone = [place for place, trace in enumerate(traces) if trace.alone]
    most = [trace.parts() for trace in traces]
    own = [sum(size for part, size in held.items() if part not in SHARED) for held in most]
    kept = [sum(held[part] for part in KEPT) + trace.own_bytes for held, trace in zip(most, traces, strict=True)]
    together = passes([trace.rows for trace in traces], first.device, alone)
    busiest = max(sum(own[i] if i in lanes else kept[i] for i in range(len(traces))) for lanes in together)
    return busiest + sum(max(held[part] for held in most) for part in SHARED)
