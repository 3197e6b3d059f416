"""A sweep's life on the tiny model: run, run again, start over, and what is left on disk and in MLflow."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

from command import SMALL

import lora_lab as package

Command = Callable[..., subprocess.CompletedProcess[str]]

SPACE = "sweep.space={method.r: {choices: [2, 8]}, method.alpha_over_r: {choices: [0.5, 2]}}"


def test_a_sweep_ends_with_its_table_and_everything_in_mlflow(tmp_path: Path, lora_lab: Command) -> None:
    done = lora_lab("sweep", "rank_alpha", *SMALL, SPACE)
    assert done.returncode == 0, done.stderr
    for said in (f"sqlite:///{tmp_path}/mlflow.db", "mlflow ui", "base model", "Best:", "Its adapter:", "Next:"):
        assert said in done.stdout
    frame = package.load_results(tmp_path / "runs" / "rank_alpha")
    assert len(frame) == 8 and set(frame["outcome"]) == {"COMPLETED"} and frame["key"].is_unique
    assert (frame["eval_loss"] < frame["base_eval_loss"]).all(), "every run must learn something"
    assert (
        (frame["trainable_parameters"] > 0).all() and (frame["peak_bytes"] > 1e6).all() and (frame["flops"] > 0).all()
    )

    again = lora_lab("sweep", "rank_alpha", *SMALL, SPACE)
    assert again.returncode == 0 and "Nothing is left to do" in again.stdout

    rows = list(csv.DictReader(io.StringIO(lora_lab("report", "rank_alpha", "--csv").stdout)))
    wanted = {
        *("sweep", "trial", "run", "seed", "outcome", "key", "method.r", "method.alpha_over_r", "eval_loss"),
        *("base_eval_loss", "train_loss", "exact_match", "trainable_parameters", "peak_bytes", "seconds"),
        *("tokens", "adapter"),
    }
    assert len(rows) == 8 and wanted <= set(rows[0])
    check_mlflow(tmp_path)


def check_mlflow(folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lora-lab"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1 and len(children) == 8
    assert {f.path for f in client.list_artifacts(parents[0].info.run_id)} >= {"config.yaml", "sweep.json"}
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert {"sweep", "trial", "seed", "key", "outcome"} <= {t.removeprefix("lora_lab.") for t in run.data.tags}
        assert {"method.r", "method.alpha_over_r", "method.roles.query", "optimizer.lr"} <= set(run.data.params)
        assert {"eval_loss", "base_eval_loss", "peak_bytes", "lane_bytes", "seconds"} <= set(run.data.metrics)
        assert [m.step for m in client.get_metric_history(run.info.run_id, "train_loss")][:6] == [1, 2, 3, 4, 5, 6]
        names = {f.path for f in client.list_artifacts(run.info.run_id)}
        assert any("config" in name for name in names) and len(run.outputs.model_outputs) == 1


def test_fresh_starts_over_beside_the_former_sweep(tmp_path: Path, lora_lab: Command) -> None:
    words = (
        "sweep",
        "rank_alpha",
        *SMALL,
        "sweep.space={method.r: {choices: [2]}}",
        "sweep.repeats=1",
        "tracking=none",
    )
    assert lora_lab(*words).returncode == 0
    before = (tmp_path / "runs/rank_alpha/runs/t0000-s0/result.json").read_bytes()
    assert lora_lab(*words, "--fresh").returncode == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["rank_alpha", "rank_alpha-2"]
    assert (tmp_path / "runs/rank_alpha/runs/t0000-s0/result.json").read_bytes() == before
    status = json.loads(lora_lab("status", "rank_alpha-2", "--json").stdout)
    assert "rank_alpha-2" in json.dumps(status)
    # The stored configuration is a sweep of its own: it goes on with the same folder's runs.
    again = lora_lab("sweep", "runs/rank_alpha-2/config.yaml")
    assert again.returncode == 0 and "Nothing is left" in again.stdout, again.stderr


def test_the_adapter_of_a_run_is_stock_peft(tmp_path: Path, lora_lab: Command) -> None:
    """`train` ends with an adapter that PeftModel loads, and that gives the loss the run reported."""
    done = lora_lab("train", *SMALL, "method.roles=[query,value,mlp,head]", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert math.isclose(peft_loss(tmp_path / "out" / "adapter"), result["eval_loss"], rel_tol=1e-4)


def peft_loss(adapter: Path) -> float:
    import torch
    from peft import PeftModel

    from lora_lab import data, models
    from lora_lab.config import compose_run

    spec = compose_run(list(SMALL))
    base = models.load(spec.model)
    model = PeftModel.from_pretrained(base.model, adapter).eval()
    split = data.load(spec.data, base.tokenizer).evaluation
    total, count = 0.0, 0
    for i in range(len(split)):
        ids, supervised = split.tokens(i)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(ids)[1:], reduction="none")
        wanted = torch.from_numpy(supervised[1:])
        total += float(losses[wanted].sum())
        count += int(wanted.sum())
    return total / count
