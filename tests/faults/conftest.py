"""A tiny sweep, what it comes to when nobody disturbs it, and how to see that another came to the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from processes import start
from tiny import SWEEP, events, results

FIELDS = ("key", "outcome", "steps", "tokens", "trial", "seed")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The results of :data:`SWEEP`, left in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = start(folder, *SWEEP)
    assert done.wait() == 0, done.said()
    return results(folder / "runs" / "rank_alpha")


@pytest.fixture
def same(undisturbed: pd.DataFrame) -> Callable[[Path], None]:
    """See that a sweep's folder holds what the undisturbed one does, each run settled once in its log."""

    def check(folder: Path) -> None:
        found = results(folder)
        assert list(found.index) == list(undisturbed.index)
        for name in FIELDS:
            assert list(found[name]) == list(undisturbed[name]), name
        for name in ("eval_loss", "train_loss", "best_eval_loss"):
            np.testing.assert_allclose(found[name], undisturbed[name], rtol=1e-5, err_msg=name)
        settled = [event["run"] for event in events(folder) if event["op"] == "settle"]
        assert sorted(settled) == list(found.index)

    return check
