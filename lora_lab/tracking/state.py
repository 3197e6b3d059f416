"""``tracking.json``: what of a sweep has been brought to which MLflow store."""

from __future__ import annotations

import copy
import hashlib
import logging
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_lab.errors import CheckpointError
from lora_lab.files import read_json, write_json
from lora_lab.tracking.store import redact

log = logging.getLogger(__name__)


@dataclass
class StoreState:
    """One store's share: the sweep's own id there, MLflow's ids, and which runs are wholly sent.

    Losing it costs nothing but time: ``sweep`` is a tag on every run, by which they are found again. It is
    random, so that a sweep begun anew in an emptied folder does not go on with the runs of the old one.
    """

    uri: str
    experiment: str
    sweep: str
    parent: str | None = None
    closed: bool = False
    runs: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)


class State:
    """The state of one (store, experiment) within a sweep's ``tracking.json``."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        """Read the file, or begin a new one (also where it is torn: everything is then sent again)."""
        self._path = folder / "tracking.json"
        self._slot = hashlib.sha256(f"{uri}\n{experiment}".encode()).hexdigest()[:16]
        tree = self._read().get(self._slot)
        new = StoreState(redact(uri), experiment, uuid.uuid4().hex)
        self.store = new if tree is None else StoreState(**tree)
        self.done = set(self.store.done)
        self._saved = None if tree is None else copy.deepcopy(self.store)

    def save(self) -> None:
        """Write what changed, leaving other stores' shares alone.

        Raises:
            SweepFolderError: no space left, or no permission.
        """
        self.store.done = sorted(self.done)
        if self.store == self._saved:
            return
        write_json(self._path, {"stores": {**self._read(), self._slot: asdict(self.store)}})
        self._saved = copy.deepcopy(self.store)

    def _read(self) -> dict[str, Any]:
        try:
            stores: dict[str, Any] = read_json(self._path)["stores"]
        except FileNotFoundError:
            return {}
        except (CheckpointError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s); the sweep is sent to MLflow anew.", self._path, error)
            return {}
        return stores
