"""A PostgreSQL that crashes and restarts, and one that is away for a while: workers wait, and lose nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from postgres import Postgres, server
from processes import start, until
from tiny import SLEEPY, results

from lora_lab.study.opening import open_log

AWAY_SECONDS = float(os.environ.get("LORA_LAB_POSTGRES_AWAY", "6"))
"""How long the server is away: three times the lease of the tiny sweep. By hand: LORA_LAB_POSTGRES_AWAY=60."""


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    yield from server()


def test_restarted_and_away_in_the_middle_of_a_sweep(
    own_server: Postgres, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    url = own_server.database("faults")
    words = (*SLEEPY, f"sweep.storage={url}", "pack.max_lanes=1")
    workers = [start(tmp_path, *words) for _ in range(2)]
    folder = tmp_path / "runs" / "rank_alpha"
    log = open_log(url, folder, "rank_alpha")
    until(lambda: sum(event["op"] == "join" for event in log.read(0)) == 2, "both to train")
    log.close()
    own_server.stop()  # immediate: as a crash
    own_server.start()
    until(lambda: any(folder.glob("runs/*/result.json")), "a result")
    own_server.stop()
    time.sleep(AWAY_SECONDS)
    own_server.start()
    assert [worker.wait() for worker in workers] == [0, 0], [worker.said() for worker in workers]
    found = results(folder)
    assert list(found.index) == list(undisturbed.index) and list(found["key"]) == list(undisturbed["key"])
    np.testing.assert_allclose(found["eval_loss"], undisturbed["eval_loss"], rtol=1e-5)
    log = open_log(url, folder, "rank_alpha")
    settled = [event["run"] for event in log.read(0) if event["op"] == "settle"]
    log.close()
    assert sorted(settled) == list(undisturbed.index)
