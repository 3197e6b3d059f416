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

FILE = "tracking.json"

log = logging.getLogger(__name__)


@dataclass
class StoreState:
    """One store's share: the sweep's own id there, MLflow's ids, which runs are wholly sent, which documents (with
    digests), and which run is registered as the best.

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
    experiment_id: str | None = None
    models: dict[str, str] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    best: str | None = None


def stores(folder: Path, uri: str) -> list[StoreState]:
    """What of the sweep in ``folder`` is in the store at ``uri``: one for each experiment, in order of their making."""
    trees = _read(folder / FILE).values()
    return [StoreState(**tree) for tree in trees if tree["uri"] == redact(uri)]


class State:
    """The state of one (store, experiment) within a sweep's ``tracking.json``."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        """Read the file, or begin a new one (also where it is torn: everything is then sent again)."""
        self._path = folder / FILE
        self._slot = hashlib.sha256(f"{uri}\n{experiment}".encode()).hexdigest()[:16]
        tree = _read(self._path).get(self._slot)
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
        write_json(self._path, {"stores": {**_read(self._path), self._slot: asdict(self.store)}})
        self._saved = copy.deepcopy(self.store)


def _read(path: Path) -> dict[str, Any]:
    """The stores by slot; none where the file is not there or torn."""
    try:
        found: dict[str, Any] = read_json(path)["stores"]
    except FileNotFoundError:
        return {}
    except (CheckpointError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s); the sweep is sent to MLflow anew.", path, error)
        return {}
    return found
