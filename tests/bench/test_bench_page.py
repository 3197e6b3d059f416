"""docs/benchmarks.md as it stands: its commands run, and do what the page says. And scores that reach MLflow."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from command import LORA_LAB, environment

import lora_lab
from lora_lab.cli.main import main
from lora_lab.files import write_json
from lora_lab.tracking.scores import record_scores

PAGE = Path(lora_lab.__file__).parent.parent / "docs" / "benchmarks.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The commands of a block: its lines, here-documents in one piece."""
    found: list[str] = []
    for line in block.splitlines():
        if found and "<<'EOF'" in found[-1] and not found[-1].endswith("\nEOF"):
            found[-1] += f"\n{line}"
        else:
            found.append(line)
    return found


def test_the_page_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = {}
    for command in (command for block in BLOCKS for command in commands(block)):
        words = shlex.split(command) if command.startswith("lora-lab") else []
        if words and words[1] in ("eval", "report"):
            assert main(words[1:]) == 0
            shown[command] = capsys.readouterr().out
        else:
            words = [LORA_LAB, *words[1:]] if words else ["bash", "-c", command]
            subprocess.run(words, check=True, env=environment(), capture_output=True, text=True, timeout=600)
    (tree,) = [json.loads(out) for command, out in shown.items() if "--json" in command]
    assert [one["name"] for one in tree["targets"]] == ["base", "runs/mine", "runs/mine/adapter"]
    assert {score["n"] for one in tree["targets"] for score in one["scores"]} == {20}
    kept = json.loads((tmp_path / "runs" / "mine" / "scores.json").read_text())
    assert {"offline_arithmetic_2ds.acc", "offline_arithmetic_4da.acc_stderr", "capitals.acc_norm"} <= set(kept)

    result = json.loads((tmp_path / "runs" / "during" / "result.json").read_text())
    assert result["scores"]["offline_arithmetic_2ds.n"] == result["base_scores"]["offline_arithmetic_2ds.n"] == 5
    assert result["gap"] == pytest.approx(result["eval_loss"] - result["train_loss"])
    lines = (tmp_path / "runs" / "during" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "evaluation"]
    assert [record["step"] for record in records if record["scores"]] == [2, 4]
    assert records[-1]["scores"] == result["scores"], "the end is a point of the series, and scored once"

    (report,) = [out for command, out in shown.items() if " report " in command]
    assert "scores.offline_arithmetic_2ds.acc (higher is better)" in report and "base model" in report
    kept_apart = [json.loads(path.read_text())["of"] for path in (tmp_path / "runs" / "forgetting" / "base").iterdir()]
    benchmarks = [about for about in kept_apart if about["evaluation"].get("tasks")]
    assert len(benchmarks) == 1, "the base model is scored once a sweep"


def test_scores_reach_the_runs_mlflow_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("demo")).info.run_id
    store = {"uri": uri, "experiment": "demo", "sweep": "x", "runs": {"t0000-s0": run}}
    secret = {"uri": "postgresql://me:***@nowhere/db", "experiment": "demo", "sweep": "x", "runs": {"t0000-s0": run}}
    write_json(tmp_path / "tracking.json", {"stores": {"a": store, "b": secret}})
    assert record_scores(tmp_path, "t0000-s0", {"own.acc": 0.25}, 7) == [uri]
    assert record_scores(tmp_path, "t0001-s0", {"own.acc": 0.25}, 7) == []
    (metric,) = client.get_metric_history(run, "score.own.acc")
    assert (metric.value, metric.step) == (0.25, 7)
