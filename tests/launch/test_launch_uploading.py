"""The process that sends a sweep to MLflow may break: training hears what is missing, and the log says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_lab.config import compose_sweep
from lora_lab.launch.uploading import Uploading


@pytest.mark.parametrize("settled", [0, 1, 2])
def test_a_process_that_breaks_says_what_is_missing_and_leaves_its_traceback(settled: int, tmp_path: Path) -> None:
    words = ["model=tiny", f"sweep.dir={tmp_path}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    composed = compose_sweep("rank_alpha", words)
    for seed in range(settled):
        (tmp_path / "runs" / f"t0000-s{seed}").mkdir(parents=True)
        (tmp_path / "runs" / f"t0000-s{seed}" / "result.json").write_text("{}")
    uploading = Uploading(composed.sweep, composed.execution)
    uploading._begin = {"nothing": "that it can read"}
    uploading.start()
    lag = uploading.close(30)
    assert lag and lag.what == ["the end of the sweep", "1 run", "2 runs"][settled]
    assert lag.error is not None and "tracking.log" in lag.error
    assert "KeyError: 'sweep'" in (tmp_path / "logs" / "tracking.log").read_text()
