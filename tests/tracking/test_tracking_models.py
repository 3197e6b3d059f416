"""What a run leaves in MLflow beside its curves: where it trained, its data set, its memory, its adapter as a model."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from lora_lab.spec import ROLES, EvaluationSpec, Objective, TrackingSpec, pairs
from lora_lab.tracking import DataFacts, Facts, links, redact
from lora_lab.tracking.logged import LOADER
from lora_lab.tracking.uploader import Uploader

TAGS = {"host": "elsewhere", "worker": "elsewhere:7", "pack": "ab12", "device": "cpu", "version.torch": "9"}
FACTS = Facts(TAGS, DataFacts("d" * 64, 400, 50), {"weights": 1000, "peak": 5000})


def sent(training, execution, client, best=None, predict=None):
    spec = execution.tracking
    made = Uploader(
        training.folder, training.sweep, spec.uri, spec.experiment, connect=lambda uri: client, predict=predict
    )
    made.send()
    made.finish(best)
    identifier = client.get_experiment_by_name(spec.experiment).experiment_id
    return {run.info.run_name: run for run in client.search_runs([identifier], max_results=1000)}


@pytest.fixture
def one(training):
    """A run with facts, recorded and settled."""
    name, trial, point, spec = list(training.runs())[-1]
    training.record(name, spec)
    FACTS.write(training.folder / "runs" / name)
    training.settle(name, trial, point, spec)
    return name


def test_a_run_says_where_and_on_what_it_trained(training, execution, client, one):
    run = sent(training, execution, client)[one]
    assert {name: run.data.tags[name] for name in TAGS} == TAGS  # the worker's, not this machine's
    assert run.data.tags["data_digest"] == "d" * 64
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == (training.sweep.base.data.name, "d" * 36)
    assert json.loads(found.dataset.profile) == {"train": 400, "evaluation": 50}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def test_memory_by_part_is_there_as_planned_and_as_measured(training, execution, client, one):
    asked = []

    def predict(spec, device):
        asked.append((spec.method.r, device))
        return {"weights": 900, "peak": 4000}

    metrics = sent(training, execution, client, predict=predict)[one].data.metrics
    assert asked == [(8, "cpu")]
    found = {name.removeprefix("memory."): value for name, value in metrics.items() if name.startswith("memory.")}
    assert found == {
        "predicted.weights_bytes": 900,
        "predicted.peak_bytes": 4000,
        "measured.weights_bytes": 1000,
        "measured.peak_bytes": 5000,
    }


def test_scores_come_with_their_standard_errors(training, execution, client):
    name, trial, point, spec = next(training.runs())
    training.record(name, spec)
    FACTS.write(training.folder / "runs" / name)
    training.settle(name, trial, point, spec, scores=pairs({"mmlu.acc": 0.5, "mmlu.acc_stderr": 0.02}), flops=1e12)
    metrics = sent(training, execution, client)[name].data.metrics
    assert metrics["exact_match_stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 49))
    assert (metrics["score.mmlu.acc"], metrics["score.mmlu.acc_stderr"], metrics["flops"]) == (0.5, 0.02, 1e12)


def test_the_searched_settings_and_the_objective_come_first_by_name(training, execution, client, one):
    base = dataclasses.replace(training.sweep.base, evaluation=EvaluationSpec(exact_match=True))
    objective = Objective("exact_match", "maximize")
    training.sweep = dataclasses.replace(training.sweep, base=base, objective=objective)
    run = sent(training, execution, client)[one]
    first = sorted(run.data.params)[:7]
    assert first == sorted(["axis.method.r", *(f"axis.method.roles.{role}" for role in ROLES)])
    assert run.data.params["axis.method.r"] == "8"
    assert run.data.params["axis.method.roles.value"] == "1" and run.data.params["axis.method.roles.mlp"] == "0"
    assert min(run.data.metrics) == "axis.exact_match" and run.data.metrics["axis.exact_match"] == 0.25


def test_an_adapter_is_a_model_with_a_signature_and_its_scores(training, execution, client, one, tmp_path):
    run = sent(training, execution, client)[one]
    (model,) = client.search_logged_models(
        [run.info.experiment_id], order_by=[{"field_name": "metrics.final_eval_loss"}]
    )
    assert model.source_run_id == run.info.run_id and model.name == f"{training.sweep.name}-{one}"
    assert str(model.status) == "READY"
    scores = {metric.key: metric.value for metric in model.metrics}
    assert scores["final_eval_loss"] == 2.8 and scores["exact_match"] == 0.25
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]

    from mlflow.models import Model

    written = Model.load(model.artifact_location.removeprefix("file://"))
    assert [column.name for column in written.signature.inputs] == ["instruction", "input"]
    assert written.flavors["python_function"]["loader_module"] == LOADER


def test_the_best_adapter_is_registered_and_moves(training, execution, client):
    training.all()
    runs = sent(training, execution, client, best="t0001-s0")
    name = training.sweep.name
    found = client.get_model_version_by_alias(name, "best")
    assert found.run_id == runs["t0001-s0"].info.run_id
    training.sweep = dataclasses.replace(training.sweep, repeats=3)
    training.all()
    for _ in range(2):
        runs = sent(training, execution, client, best="t0002-s2")
    found = client.get_model_version_by_alias(name, "best")
    assert found.run_id == runs["t0002-s2"].info.run_id


def test_the_tables_and_plots_of_the_sweep_are_on_the_parent(training, execution, client, one, tmp_path):
    report = training.folder / "report"
    (report / "figures").mkdir(parents=True)
    (report / "report.html").write_text("<p>postgresql://me:s3cret@db/lab</p>")
    (report / "figures" / "gap.png").write_bytes(b"\x89PNG")
    parent = sent(training, execution, client)[training.sweep.name]
    identifier = parent.info.run_id
    assert [item.path for item in client.list_artifacts(identifier, "report")] == [
        "report/figures",
        "report/report.html",
    ]
    page = client.download_artifacts(identifier, "report/report.html", str(tmp_path))
    assert Path(page).read_text() == "<p>postgresql://me:***@db/lab</p>"
    assert [item.path for item in client.list_artifacts(identifier, "report/figures")] == ["report/figures/gap.png"]


def test_links_lead_to_the_runs_of_the_sweep(training, execution, client, monkeypatch):
    assert links(training.folder, execution.tracking.uri) is None
    training.all()
    runs = sent(training, execution, client)
    found = links(training.folder, execution.tracking.uri)
    identifier = client.get_experiment_by_name(execution.tracking.experiment).experiment_id
    assert found.table.startswith(f"/#/experiments/{identifier}/runs?searchFilter=")
    assert found.table.endswith("&orderByKey=metrics.%60axis.eval_loss%60&orderByAsc=true")
    assert all(run.info.run_id in found.compare for name, run in runs.items() if name != training.sweep.name)
    monkeypatch.setattr("lora_lab.tracking.routes.COMPARED", 4)
    fewer = links(training.folder, execution.tracking.uri).compare
    assert sum(run.info.run_id in fewer for run in runs.values()) == 4
    assert links(training.folder, "http://elsewhere:1") is None


SECRETS = {
    "HF_TOKEN": "hf_abcdefghijkl",
    "MLFLOW_TRACKING_PASSWORD": "tr4ckingpass",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
}


def test_no_secret_of_the_environment_or_a_uri_reaches_mlflow_or_the_log(
    training, execution, client, monkeypatch, caplog
):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    said = "; ".join([*SECRETS.values(), "https://u:s3cret@h/d?token=t0ken99"])
    base = training.sweep.base
    data = dataclasses.replace(base.data, name="alpaca", path=f"https://u:s3cret@h/{SECRETS['HF_TOKEN']}")
    training.sweep = dataclasses.replace(training.sweep, base=dataclasses.replace(base, data=data))
    (training.folder / "config.yaml").write_text(said)
    (training.folder / "report").mkdir()
    (training.folder / "report" / "report.html").write_text(said)
    for name, trial, point, spec in list(training.runs())[:2]:
        training.record(name, spec)
        Facts({**TAGS, "device": said}, FACTS.data, {}).write(training.folder / "runs" / name)
        training.settle(name, trial, point, spec, message=said)
    (training.folder / "runs" / "t0003-s1").mkdir()
    (training.folder / "runs" / "t0003-s1" / "result.json").write_text(f'{{"outcome": "{said}"}}')
    runs = sent(training, execution, client, best="t0000-s0")
    written = [json.dumps(run.to_dictionary(), default=str) for run in runs.values()]
    folder = client.get_experiment_by_name(execution.tracking.experiment).artifact_location.removeprefix("file://")
    written += [path.read_text(errors="replace") for path in _files(folder)]
    written += [record.getMessage() for record in caplog.records]
    written += [(training.folder / "tracking.json").read_text()]
    assert len(written) > 10
    for secret in (*SECRETS.values(), "s3cret", "t0ken99"):
        assert not [text for text in written if secret in text], secret


def _files(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HF_TOKEN", "hf_abcdef", "***"),
        ("OPENAI_API_KEY", "sk-12345678", "***"),
        ("DB_PASSWORD", "short", "short"),  # it would be found in innocent words
        ("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json", "/home/me/key.json"),  # a place
        ("KEYBOARD", "qwertz-de", "qwertz-de"),
    ],
)
def test_which_variables_are_secret(monkeypatch, name, value, shown):
    monkeypatch.setenv(name, value)
    assert redact(f"a {value} b") == f"a {shown} b"


def test_a_password_for_the_store_is_not_kept(training, execution):
    spec = TrackingSpec(uri="http://me:s3cret@127.0.0.1:9", experiment="x")
    made = Uploader(training.folder, training.sweep, spec.uri, spec.experiment)
    training.all()
    with pytest.raises(Exception, match=r"127\.0\.0\.1") as caught:
        made.send()
    assert "s3cret" not in redact(str(caught.value))
    assert "s3cret" not in "".join(path.read_text() for path in training.folder.glob("*.json"))
