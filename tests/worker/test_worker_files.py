"""What a run begins with when it goes on from another's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_lab.engine import checkpoint
from lora_lab.errors import CheckpointError
from lora_lab.worker import files


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A run whose checkpoint stands at step 3."""
    folder = tmp_path / "t0000-s0"
    tensors = {"adapter.A": torch.ones(2), "optimizer.0.exp_avg": torch.ones(2)}
    checkpoint.write(folder, tensors, {"key": "parent", "step": 3, "optimizer": {"0.step": 3}})
    return folder


@pytest.mark.parametrize("fresh", [True, False])
def test_a_copy_has_its_parents_adapter_and_perhaps_its_optimizer(parent: Path, tmp_path: Path, fresh: bool) -> None:
    files.branch(parent, tmp_path / "copy", "own", step=3, fresh_optimizer=fresh)
    tensors, state = checkpoint.read(tmp_path / "copy") or ({}, {})
    assert (state["key"], state["step"], bool(state["optimizer"])) == ("own", 3, not fresh)
    assert ("optimizer.0.exp_avg" in tensors) is not fresh and torch.equal(tensors["adapter.A"], torch.ones(2))
    assert json.loads((tmp_path / "copy" / files.PARENT).read_text()) == {"parent": "t0000-s0", "step": 3}


def test_a_parent_that_has_gone_on_is_not_copied(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="stands at step 3 by now, and a copy of step 2"):
        files.branch(parent, tmp_path / "copy", "own", step=2, fresh_optimizer=False)
    assert checkpoint.read(tmp_path / "copy") is None


def test_a_copy_that_has_a_checkpoint_of_its_own_keeps_it(parent: Path, tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "copy", {}, {"key": "own", "step": 9})
    files.branch(parent, tmp_path / "copy", "own", step=2, fresh_optimizer=False)
    assert (checkpoint.read(tmp_path / "copy") or ({}, {}))[1]["step"] == 9
