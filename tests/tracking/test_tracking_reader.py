"""What was sent to MLflow comes back as the frame that the folder gives."""

import json

import pandas as pd
import pytest

import lora_lab
from lora_lab.errors import StorageError
from lora_lab.spec import Outcome
from lora_lab.tracking.uploader import Uploader


def sent(training, execution):
    sweep = training.sweep
    (training.folder / "sweep.json").write_text(json.dumps(sweep.to_tree() | {"key": sweep.key}))
    uploader = Uploader(training.folder, sweep, execution.tracking.uri, execution.tracking.experiment)
    uploader.send()
    uploader.finish()


def test_a_store_gives_the_frame_of_the_folder(training, execution):
    training.all()
    sent(training, execution)
    tracking = execution.tracking
    there = lora_lab.load_results("masks and ranks", store=tracking.uri, experiment=tracking.experiment)
    here = lora_lab.load_results(training.folder)
    assert there.attrs["sweep"] == here.attrs["sweep"]
    same = [name for name in here.columns if name not in ("adapter", "message")]
    pd.testing.assert_frame_equal(there[same], here[same], check_dtype=False)


def test_an_artifact_store_that_fails_without_a_word_is_named(training, execution, monkeypatch):
    def fails(*_):
        raise TimeoutError

    sent(training, execution)
    tracking = execution.tracking
    monkeypatch.setattr("mlflow.MlflowClient.download_artifacts", fails)
    with pytest.raises(StorageError, match=r"sweep\.json cannot be read from the MLflow artifacts \(TimeoutError\)"):
        lora_lab.load_results("masks and ranks", store=tracking.uri, experiment=tracking.experiment)


def test_outcomes_and_scores_come_back_and_runs_that_go_on_do_not(training, execution):
    runs = list(training.runs())
    name, trial, point, spec = runs[0]
    training.record(name, spec, last=2)
    result = training.settle(
        name,
        trial,
        point,
        spec,
        outcome=Outcome.DIVERGED,
        eval_loss=None,
        exact_match=None,
        adapter=None,
        message="NaN",
    )
    training.spool.ended(result)
    training.record(runs[1][0], runs[1][3], last=2)  # no result yet
    sent(training, execution)
    tracking = execution.tracking
    frame = lora_lab.load_results("masks and ranks", store=tracking.uri, experiment=tracking.experiment)
    assert frame["outcome"].tolist() == ["DIVERGED"] and frame["message"].tolist() == ["NaN"]
    assert frame["eval_loss"].isna().all() and frame["method.roles"].tolist() == [("query",)]


def test_what_is_not_there_is_named(training, execution):
    training.all()
    sent(training, execution)
    tracking = execution.tracking
    with pytest.raises(StorageError, match="did you mean 'masks and ranks'"):
        lora_lab.load_results("masks and rank", store=tracking.uri, experiment=tracking.experiment)
    with pytest.raises(StorageError, match="has no experiment 'nowhere'"):
        lora_lab.load_results("masks and ranks", store=tracking.uri, experiment="nowhere")
