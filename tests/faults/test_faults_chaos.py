"""Two hundred runs under random kills come to the table of an undisturbed sweep; ``chaos.py`` does it for longer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from processes import start


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos", Path(__file__).with_name("chaos.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_hundred_runs_under_random_kills(driver: ModuleType, tmp_path: Path) -> None:
    for name in ("whole", "disturbed"):
        (tmp_path / name).mkdir()
    words = driver.sweep_of(100, 2, None, lanes=9)
    whole = start(tmp_path / "whole", *words)
    assert whole.wait() == 0, whole.said()
    done = driver.chaos(tmp_path / "disturbed", words, workers=2, every=1.5, seed=0, limit=300)
    assert sum(done.values()) >= 3, "the test must disturb it"
    folders = (tmp_path / name / "runs" / "rank_alpha" for name in ("disturbed", "whole"))
    assert driver.compare(*folders, None) == 200
