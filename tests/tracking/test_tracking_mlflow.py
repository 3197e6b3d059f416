"""What is in MLflow afterwards: everything, once, without secrets; and training never waits for it."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import socket
import time
from pathlib import Path

import pytest

from lora_lab.spec import ROLES, Execution, Outcome, TrackingSpec, mask_of
from lora_lab.tracking import Tracker, Untracked, open_tracker
from lora_lab.tracking.experiment import connect
from lora_lab.tracking.uploader import Uploader

# MLflow 3.17 still says relationship(lazy="noload"), which SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


class Crash(BaseException):
    """Stands for kill -9: nothing catches it."""


class Flaky:
    """The real client, which dies at its ``at``-th call: before the call reaches the store, or after."""

    def __init__(self, client, at, *, after, error=Crash):
        self.client, self.at, self.after, self.error, self.calls = client, at, after, error, 0

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == self.at and not self.after:
                raise self.error(name)
            value = method(*args, **kwargs)
            if self.calls == self.at:
                raise self.error(name)
            return value

        return call


def uploader(training, execution, client):
    spec = execution.tracking
    return Uploader(training.folder, training.sweep, spec.uri, spec.experiment, connect=lambda uri: client)


def send(training, execution, client):
    made = uploader(training, execution, client)
    made.send()
    made.finish()
    return made


def in_mlflow(client, experiment):
    """(parents, children by name) of an experiment."""
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len({run.info.run_name for run in children}) == len(children)
    return [run for run in runs if run not in children], {run.info.run_name: run for run in children}


def history(client, run, metric):
    """Its points, ``None`` for NaN, which would differ from itself."""
    found = client.get_metric_history(run.info.run_id, metric)
    return [(m.step, None if math.isnan(m.value) else m.value) for m in found]


def artifacts(client, run, path=None):
    return sorted(item.path for item in client.list_artifacts(run.info.run_id, path))


def text(client, run, path):
    return Path(client.download_artifacts(run.info.run_id, path)).read_text()


def everything(client, experiment):
    """All that a sweep left in MLflow, without MLflow's own ids."""
    parents, children = in_mlflow(client, experiment)
    out = {}
    for run in [*parents, *children.values()]:
        tags = {k: v for k, v in run.data.tags.items() if k not in ("mlflow.parentRunId", "lora_lab.sweep")}
        metrics = {name: history(client, run, name) for name in run.data.metrics}
        logged = models(client, run)
        assert len(logged) <= 1 and len(run.outputs.model_outputs) == len(logged)
        files = [item.path for m in logged for item in client.list_logged_model_artifacts(m.model_id, "data/adapter")]
        inputs = [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs]
        out[run.info.run_name] = (
            run.info.status,
            run.data.params,
            tags,
            metrics,
            artifacts(client, run),
            files,
            inputs,
        )
    return len(parents), out


def models(client, run):
    """The models that a run logged."""
    condition = f"source_run_id = '{run.info.run_id}'"
    return list(client.search_logged_models([run.info.experiment_id], filter_string=condition))


def test_one_parent_and_a_child_for_every_trial_and_seed(training, execution, client, experiment):
    training.all()
    send(training, execution, client)
    parents, children = in_mlflow(client, experiment)
    (parent,) = parents
    assert sorted(children) == [name for name, *_ in training.runs()] and len(children) == 8
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}


def test_a_child_says_what_was_run_and_what_came_out(training, execution, client, experiment):
    training.all()
    send(training, execution, client)
    run = in_mlflow(client, experiment)[1]["t0001-s1"]
    params = run.data.params
    assert (params["method.r"], params["method.alpha"], params["method.alpha_over_r"]) == ("2", "4", "2")
    assert params["method.roles"] == "query+value"
    assert {role for role in ROLES if params[f"method.roles.{role}"] == "True"} == set(mask_of("query+value"))
    assert (params["optimizer.lr"], params["seed"], params["model.name"]) == ("0.0003", "1", "tiny")
    assert "None" not in params.values()

    tags = run.data.tags
    spec = next(spec for name, _, _, spec in training.runs() if name == "t0001-s1")
    assert (tags["sweep"], tags["trial"], tags["seed"]) == ("masks and ranks", "1", "1")
    assert (tags["key"], tags["outcome"], tags["host"]) == (spec.key, "COMPLETED", socket.gethostname())
    assert {"version.torch", "version.transformers", "version.peft", "version.optuna", "version.lora_lab"} <= set(tags)
    assert tags["git_commit"] == tags["mlflow.source.git.commit"]

    assert history(client, run, "train_loss") == [(1, 2.9), (2, 2.8), (3, 2.7), (4, 2.6)]
    assert history(client, run, "eval_loss") == [(0, 3.2), (2, 3.0), (4, pytest.approx(2.8))]
    assert [step for step, _ in history(client, run, "lr")] == [1, 2, 3, 4]
    assert history(client, run, "tokens_per_second")[0] == (1, 400.0)
    assert [step for step, _ in history(client, run, "grad_norm")] == [1, 2, 3, 4]
    metrics = run.data.metrics
    assert (metrics["trainable_parameters"], metrics["peak_bytes"]) == (1234, 1 << 30)
    assert (metrics["base_eval_loss"], metrics["best_eval_loss"], metrics["exact_match"]) == (3.2, 2.8, 0.25)
    assert (metrics["final_eval_loss"], metrics["final_train_loss"]) == (2.8, 2.6)
    assert (run.info.start_time, run.info.end_time) == (1_700_000_001_000, 1_700_000_061_000)

    assert artifacts(client, run) == ["config.json"]
    assert json.loads(text(client, run, "config.json"))["method"]["r"] == 2


def test_the_parent_says_what_all_runs_share_and_keeps_no_secret(training, execution, client, experiment):
    base = dataclasses.replace(
        training.sweep.base,
        data=dataclasses.replace(training.sweep.base.data, name="alpaca", path="https://u:s3cret@h/d"),
    )
    training.sweep = dataclasses.replace(training.sweep, base=base)
    training.all()
    send(training, execution, client)
    (parent,), children = in_mlflow(client, experiment)
    assert parent.info.run_name == parent.data.tags["sweep"] == "masks and ranks"
    assert parent.data.tags["lora_lab.key"] == training.sweep.key
    assert parent.data.params["optimizer.name"] == "adamw"
    assert parent.data.params["sweep.searched"] == "method.r, method.roles"
    assert not {"method.r", "method.roles", "method.alpha", "seed"} & set(parent.data.params)
    assert artifacts(client, parent) == ["config.yaml", "sweep.json"]
    assert text(client, parent, "config.yaml") == "sweep: {storage: 'postgresql://me:***@db/lab'}\n"
    child = children["t0000-s0"]
    assert child.data.params["data.path"] == "https://u:***@h/d"
    assert "s3cret" not in text(client, child, "config.json")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("PRUNED", "KILLED"), ("DIVERGED", "FAILED"), ("OUT_OF_MEMORY", "FAILED"), ("FAILED", "FAILED")],
)
def test_outcomes_stay_apart(training, execution, client, experiment, outcome, status):
    name, trial, point, spec = next(training.runs())
    training.record(name, spec, last=2)
    training.settle(name, trial, point, spec, outcome=Outcome(outcome), eval_loss=math.nan, adapter=None, message="why")
    send(training, execution, client)
    run = in_mlflow(client, experiment)[1][name]
    assert (run.info.status, run.data.tags["outcome"], run.data.tags["message"]) == (status, outcome, "why")
    assert artifacts(client, run) == ["config.json"]
    assert "final_eval_loss" not in run.data.metrics


def test_a_shared_result_is_a_child_too(training, execution, client, experiment):
    (first, second, *_) = training.runs()
    training.settle(*first)
    training.settle(*second, message="same experiment as t0000-s0", adapter="runs/t0000-s0/adapter")
    send(training, execution, client)
    run = in_mlflow(client, experiment)[1]["t0000-s1"]
    assert run.data.params["seed"] == "1"
    assert run.data.metrics["eval_loss"] == 2.8
    assert run.data.tags["message"] == "same experiment as t0000-s0"
    assert run.data.tags["adapter_of"] == "t0000-s0"
    assert artifacts(client, run) == ["config.json"]


def test_a_run_says_whose_checkpoint_it_began_from(training, execution, client, experiment):
    (first, second, third, *_) = training.runs()
    training.settle(*first)
    training.settle(*second, stage="t0000-s0@2")
    training.settle(*third, parent="t0000-s0", parent_step=4)
    send(training, execution, client)
    tags = [in_mlflow(client, experiment)[1][name].data.tags for name in (first[0], second[0], third[0])]
    assert not {"stage", "parent"} & set(tags[0])
    assert tags[1]["stage"] == "t0000-s0@2"
    assert (tags[2]["parent"], tags[2]["parent_step"]) == ("t0000-s0", "4")


def test_a_diverging_loss_is_sent_as_it_is(training, execution, client, experiment):
    name, _, _, spec = next(training.runs())
    training.record(name, spec, last=1)
    training.spool.step(name, dataclasses.replace(training.step(2), loss=math.nan))
    send(training, execution, client)
    run = in_mlflow(client, experiment)[1][name]
    assert math.isnan(client.get_metric_history(run.info.run_id, "train_loss")[1].value)
    (wanted,) = [name for name in run.data.metrics if name.startswith("axis.")]
    assert math.isnan(run.data.metrics[wanted]), "not known yet, and there: MLflow's compare page begins with it"


def test_a_long_run_is_thinned_in_mlflow_and_whole_in_the_spool(training, execution, client, experiment):
    name, _, _, spec = next(training.runs())
    training.record(name, spec, last=2501, total=2501)
    send(training, execution, client)
    sent = [step for step, _ in history(client, in_mlflow(client, experiment)[1][name], "train_loss")]
    assert 500 <= len(sent) <= 1000 and sent[-1] == 2501


def test_what_comes_later_is_sent_later_and_nothing_twice(training, execution, client, experiment):
    name, trial, point, spec = next(training.runs())
    made = uploader(training, execution, client)
    training.record(name, spec, last=2)
    made.send()
    made.send()
    training.spool.step(name, training.step(3))
    training.spool.step(name, training.step(4))
    made.send()
    run = in_mlflow(client, experiment)[1][name]
    assert [step for step, _ in history(client, run, "train_loss")] == [1, 2, 3, 4]
    assert run.info.status == "RUNNING"
    training.settle(name, trial, point, spec)
    made.send()
    assert in_mlflow(client, experiment)[1][name].info.status == "FINISHED"
    assert made.unsent() == {}


def test_steps_trained_again_after_a_kill_are_not_sent_twice(training, execution, client, experiment):
    name, trial, point, spec = next(training.runs())
    training.record(name, spec, last=3)
    send(training, execution, client)
    assert in_mlflow(client, experiment)[1][name].info.status == "KILLED"  # put aside
    training.record(name, spec, first=2)  # a new process, from the checkpoint of step 2
    training.settle(name, trial, point, spec)
    send(training, execution, client)
    run = in_mlflow(client, experiment)[1][name]
    assert [step for step, _ in history(client, run, "train_loss")] == [1, 2, 3, 4]
    assert [step for step, _ in history(client, run, "tokens_per_second")] == [1, 2, 3, 4]
    assert run.info.status == "FINISHED"


def test_a_spool_cut_while_it_is_followed_is_followed_on(training, execution, client, experiment):
    name, _, _, spec = next(training.runs())
    made = uploader(training, execution, client)
    training.record(name, spec, last=3)
    made.send()
    training.record(name, spec, first=2)
    made.send()
    assert [s for s, _ in history(client, in_mlflow(client, experiment)[1][name], "train_loss")] == [1, 2, 3, 4]


def test_a_crash_at_any_call_costs_and_doubles_nothing(training, execution, client, experiment, tmp_path):
    small = dataclasses.replace(training.sweep, space=type(training.sweep.space)(training.sweep.space.domains[:1]))
    training.sweep = dataclasses.replace(small, repeats=1)
    training.all()
    counted = Flaky(client, 0, after=False)
    send(training, execution, counted)
    wanted = everything(client, experiment)
    assert wanted[0] == 1 and len(wanted[1]) == 3
    for at in range(1, counted.calls + 1):
        (training.folder / "tracking.json").unlink()
        name = f"{experiment} {at}"
        again = dataclasses.replace(execution, tracking=dataclasses.replace(execution.tracking, experiment=name))
        with pytest.raises(Crash):
            send(training, again, Flaky(client, at, after=at % 2 == 0))
        send(training, again, client)
        assert everything(client, name) == wanted, f"after a crash at call {at}"


def test_a_state_file_older_than_the_store_does_no_harm(training, execution, client, experiment):
    """kill -9 after the calls and before tracking.json was written."""
    runs = list(training.runs())
    state = training.folder / "tracking.json"
    for name, trial, point, spec in runs[:2]:
        training.record(name, spec)
        training.settle(name, trial, point, spec)
    made = uploader(training, execution, client)
    made._begin()
    before = state.read_bytes()
    send(training, execution, client)
    wanted = everything(client, experiment)
    state.write_bytes(before)
    send(training, execution, client)
    assert everything(client, experiment) == wanted


def test_a_sweep_begun_anew_in_an_emptied_folder_gets_runs_of_its_own(training, execution, client, experiment):
    name, trial, point, spec = next(training.runs())
    for _ in range(2):
        training.record(name, spec)
        training.settle(name, trial, point, spec)
        send(training, execution, client)
        training.spool.close()
        shutil.rmtree(training.folder)
        training.folder.mkdir()
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(runs) == 4


def test_another_store_gets_everything_again(training, execution, client, experiment):
    training.all()
    send(training, execution, client)
    other = dataclasses.replace(
        execution, tracking=dataclasses.replace(execution.tracking, experiment=f"{experiment} 2")
    )
    send(training, other, client)
    assert everything(client, f"{experiment} 2") == everything(client, experiment)
    assert len(json.loads((training.folder / "tracking.json").read_text())["stores"]) == 2


def test_a_sweep_that_grew_goes_on_under_its_parent(training, execution, client, experiment):
    training.all()
    send(training, execution, client)
    training.sweep = dataclasses.replace(training.sweep, repeats=3)
    training.all()
    send(training, execution, client)
    (parent,), children = in_mlflow(client, experiment)
    assert len(children) == 12
    assert parent.data.tags["sweep.repeats"] == "3"
    assert parent.info.status == "FINISHED"


def test_one_refused_run_does_not_hold_up_the_others(training, execution, client, experiment, caplog):
    training.all()
    made = uploader(training, execution, client)
    name, *_ = next(training.runs())
    (training.folder / "runs" / name / "result.json").write_text("{torn")
    made.send()
    assert list(made.refused) == [name]
    assert len(in_mlflow(client, experiment)[1]) == 7


def test_a_deleted_experiment_is_said(training, execution, client, experiment):
    client.delete_experiment(client.create_experiment(experiment))
    training.all()
    tracker = open_tracker(training.sweep, execution)
    tracker.start()
    lag = tracker.close(timeout=60)
    assert lag.runs == 8 and "is deleted" in lag.error


class TestTracker:
    def test_follows_while_it_trains_and_is_complete_at_the_end(
        self, training, execution, client, experiment, wait_for
    ):
        tracker = open_tracker(training.sweep, execution)
        tracker.start()
        name, trial, point, spec = next(training.runs())
        training.record(name, spec, last=2)
        wait_for(lambda: client.get_experiment_by_name(experiment))
        wait_for(lambda: in_mlflow(client, experiment)[1].get(name))
        training.spool.step(name, training.step(3))
        training.spool.step(name, training.step(4))
        training.settle(name, trial, point, spec)
        assert not tracker.close(timeout=60)
        run = in_mlflow(client, experiment)[1][name]
        assert [step for step, _ in history(client, run, "train_loss")] == [1, 2, 3, 4]
        assert run.info.status == "FINISHED"

    def test_nothing_new_means_nothing_is_contacted(self, training, execution, client):
        training.all()
        send(training, execution, client)

        def never(uri):
            raise AssertionError("contacted")

        spec = execution.tracking
        tracker = Tracker(training.folder, training.sweep, spec.uri, spec.experiment, connect=never)
        tracker.start()
        lag = tracker.close(timeout=10)
        assert (lag.runs, lag.error) == (0, None)

    def test_a_dead_server_costs_nothing_and_is_caught_up_with(self, training, execution, client, experiment):
        dead = dataclasses.replace(execution, tracking=TrackingSpec(uri="http://me:s3cret@127.0.0.1:9"))
        tracker = open_tracker(training.sweep, dead)
        begun = time.monotonic()
        tracker.start()
        training.all()
        assert time.monotonic() - begun < 60  # a blocking call would take minutes
        lag = tracker.close(timeout=30)
        assert lag and lag.runs == 8 and lag.metrics == 8 * 7
        assert "127.0.0.1" in lag.error and "s3cret" not in lag.error
        send(training, execution, client)
        assert len(in_mlflow(client, experiment)[1]) == 8

    def test_a_server_that_never_answers_does_not_hold_up_the_end(self, training, execution):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
            tracker = open_tracker(training.sweep, dataclasses.replace(execution, tracking=TrackingSpec(uri=uri)))
            tracker.start()
            training.all()
            begun = time.monotonic()
            lag = tracker.close(timeout=1)
            assert time.monotonic() - begun < 30  # it was given one
            assert lag.runs == 8

    def test_a_store_that_comes_back_gets_everything(
        self, training, execution, client, experiment, monkeypatch, wait_for
    ):
        monkeypatch.setattr("lora_lab.tracking.tracker.POLL_SECONDS", 0.02)
        flaky = Flaky(client, 7, after=False, error=ConnectionError)
        spec = execution.tracking
        tracker = Tracker(training.folder, training.sweep, spec.uri, experiment, connect=lambda uri: flaky)
        tracker.start()
        training.all()
        wait_for(lambda: flaky.calls > 7)
        assert not tracker.close(timeout=60)
        assert len(in_mlflow(client, experiment)[1]) == 8

    def test_time_up_leaves_the_rest_for_the_next_start(self, training, execution, client, experiment):
        class Slow(Flaky):
            def __getattr__(self, name):
                time.sleep(0.05)
                return super().__getattr__(name)

        training.all()
        spec = execution.tracking
        slow = Slow(client, 0, after=False)
        tracker = Tracker(training.folder, training.sweep, spec.uri, experiment, connect=lambda uri: slow)
        tracker.start()
        lag = tracker.close(timeout=1)
        assert 0 < lag.runs <= 8
        tracker._thread.join(30)
        send(training, execution, client)
        assert len(in_mlflow(client, experiment)[1]) == 8

    def test_without_tracking_there_is_nothing_to_do(self, training, execution):
        none = Execution(folder=execution.folder, tracking=TrackingSpec(name="none"))
        tracker = open_tracker(training.sweep, none)
        assert isinstance(tracker, Untracked)
        tracker.start()
        assert not tracker.close()

    def test_mlflow_is_quiet(self, training, execution, capfd):
        training.all()
        tracker = open_tracker(training.sweep, execution)
        tracker.start()
        tracker.close(timeout=60)
        out, err = capfd.readouterr()
        assert (out, err) == ("", "")
        assert logging.getLogger("mlflow").level == logging.ERROR


def test_artifacts_lie_beside_the_store(training, execution, client, experiment, store):
    training.all()
    send(training, execution, client)
    location = client.get_experiment_by_name(experiment).artifact_location
    assert location.startswith(Path(store.removeprefix("sqlite:///")).parent.as_uri())
    assert connect(store) is not client


def test_a_store_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    """MLflow makes it in many steps; killed among them it would be refused ever after."""
    from mlflow import MlflowClient

    def killed(client, **_):
        file = Path(client.tracking_uri.removeprefix("sqlite:///"))
        file.write_bytes(b"half")
        raise Crash

    monkeypatch.setattr(MlflowClient, "search_experiments", killed)
    with pytest.raises(Crash):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_what_a_killed_process_left_of_a_store_is_removed(tmp_path):
    import multiprocessing
    import os
    import socket

    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
    mine = f".mlflow.db.{socket.gethostname()}."
    left = [tmp_path / f"{mine}{process.pid}", tmp_path / f"{mine}{process.pid}-journal"]
    others = [tmp_path / f"{mine}{os.getppid()}", tmp_path / f".mlflow.db.elsewhere.{process.pid}"]
    for file in (*left, *others):
        file.write_bytes(b"half")
    connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert [file.exists() for file in (*left, *others)] == [False, False, True, True]
    assert (tmp_path / "mlflow.db").stat().st_size > 0
