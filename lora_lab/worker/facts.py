"""What a worker tells of a run beside its result: where it trains, on which data, and the memory it took."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_lab.data import Tokenised
from lora_lab.engine.lane import Lane
from lora_lab.models import BaseModel
from lora_lab.tracking import DataFacts, Facts, origin, read_facts


@dataclass
class Teller:
    """Writes ``facts.json`` for the runs of one pack on ``base``."""

    base: BaseModel
    pack: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def begun(self, folder: Path, tokens: Tokenised) -> None:
        """A run enters the pack."""
        where = origin()
        tags = {
            **where,
            "worker": f"{where['host']}:{os.getpid()}",
            "pack": self.pack,
            "device": str(self.base.device),
        }
        data = DataFacts(tokens.digest, len(tokens.train), len(tokens.evaluation))
        Facts(tags, data).write(folder)

    def ended(self, folder: Path, lane: Lane, crowd: int) -> None:
        """A run leaves the pack, which had ``crowd`` lanes at most."""
        facts = read_facts(folder)
        replace(facts, tags={**facts.tags, "lanes": str(crowd)}, memory=self._memory(lane)).write(folder)

    def _memory(self, lane: Lane) -> dict[str, int]:
        """Bytes by part: the base's weights, what the lane alone holds, and the peak of the process it was in."""
        adapters = sum(p.nbytes for p in lane.parameters)
        model = self.base.model
        return {
            "weights": sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
            "adapters": adapters + sum(best.nbytes for best in lane.best_tensors.values()),
            "lane": lane.own_bytes,
            "optimizer": lane.own_bytes - 2 * adapters,
            "peak": lane.peak,
        }
