"""``facts.json`` of a run: where and beside whom it trained, on which data, and what memory was measured.

Written by the worker, which alone knows it, and read by the uploader, perhaps on another machine:

==========  ===================================================================================================
``tags``    text by name: ``host``, ``worker``, ``pack``, ``device``, package versions, the git commit
``data``    ``digest`` (SHA-256 of everything the tokens were made from), ``train`` and ``evaluation`` (examples)
``memory``  bytes by part, as measured; there once the run has ended
==========  ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_lab.errors import CheckpointError, SpecError
from lora_lab.files import read_json, write_json
from lora_lab.spec import from_tree, to_tree

FILE = "facts.json"


@dataclass(frozen=True)
class DataFacts:
    """The data set that a run was trained on, as it was tokenised."""

    digest: str
    train: int
    evaluation: int


@dataclass(frozen=True)
class Facts:
    """What is in the file."""

    tags: Mapping[str, str] = field(default_factory=dict)
    data: DataFacts | None = None
    memory: Mapping[str, int] = field(default_factory=dict)

    def write(self, run_folder: Path) -> None:
        """Write the file; it is not fsynced, for nothing is lost with it that trains again.

        Raises:
            SweepFolderError: no space left, or no permission.
        """
        write_json(run_folder / FILE, to_tree(self), durable=False)


def read_facts(run_folder: Path) -> Facts:
    """The facts of a run; empty where there are none, or none that can be read."""
    try:
        tree: dict[str, Any] = read_json(run_folder / FILE)
        data = tree.get("data")
        return Facts(
            {str(name): str(value) for name, value in tree.get("tags", {}).items()},
            None if data is None else from_tree(DataFacts, data, "data"),
            {str(name): int(value) for name, value in tree.get("memory", {}).items()},
        )
    except (FileNotFoundError, CheckpointError, SpecError, AttributeError, TypeError, ValueError):
        return Facts()
