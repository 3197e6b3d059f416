"""What people tell a study while it runs: each word is heard, recorded, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_lab.errors import SpecError, StorageError, SweepFolderError
from lora_lab.spec import Order, Outcome
from lora_lab.study import Study
from lora_lab.study.control import Control
from lora_lab.study.portable import export_study, import_study

SPACE = {"method.r": {"choices": [2, 4, 8]}}


@pytest.fixture
def folder(execution):
    return Path(execution.folder)


def checkpoint(folder, run):
    path = folder / "runs" / run / "checkpoint.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)


def heard(study):
    study._session.sync()
    study._look()
    return dict(study.orders())


def test_retry_takes_failures_back_and_nothing_else(make_sweep, execution, result_of, folder):
    sweep = make_sweep(SPACE)
    with Study.open(sweep, execution) as study:
        for outcome in (Outcome.FAILED, Outcome.COMPLETED, Outcome.OUT_OF_MEMORY):
            run = study.next_run()
            study.settle(run, result_of(run, outcome, message="x"))
        assert not study.waiting()
        with Control(folder) as control:
            assert control.retry() == ["t0000-s0", "t0002-s0"]
            assert control.retry() == []
        assert study.waiting()
        assert [study.next_run().id, study.next_run().id] == ["t0000-s0", "t0002-s0"]
        assert not (folder / "runs" / "t0000-s0" / "result.json").exists()
    with Study.open(sweep, execution) as study:
        run = study.next_run()
        assert study.settle(run, result_of(run, eval_loss=1.25))
        assert study._session.shadow.study.trials[0].value == 1.25


def test_retry_of_named_runs(make_sweep, execution, result_of, folder):
    with Study.open(make_sweep(SPACE), execution) as study:
        run = study.next_run()
        study.settle(run, result_of(run))
    with Control(folder) as control:
        assert control.retry(runs=["t0000-s0"]) == ["t0000-s0"]
        with pytest.raises(SweepFolderError, match="no run 't0009-s0'"):
            control.retry(runs=["t0009-s0"])


def test_cancel_parks_what_trains_and_the_same_command_goes_on(make_sweep, execution, folder):
    sweep = make_sweep(SPACE)
    with Study.open(sweep, execution) as study:
        run = study.next_run()
        with Control(folder) as control:
            assert control.cancel() == 1
        assert heard(study) == {run.id: Order.PARK}
        assert study.next_run() is None and not study.waiting()
    with Study.open(sweep, execution) as study:
        assert study.next_run().id == run.id


def test_stop_ends_a_run_that_trains_and_one_that_waits(make_sweep, execution, result_of, folder):
    with Study.open(make_sweep(SPACE, repeats=2), execution) as study:
        run = study.next_run()
        with Control(folder) as control:
            assert "ends it at its next step" in control.stop(run.id)
            assert "will not be trained" in control.stop("t0000-s1")
        assert heard(study) == {run.id: Order.STOP}
        assert study.settle(run, result_of(run, Outcome.PRUNED))
        with Control(folder) as control, pytest.raises(SweepFolderError, match="settled already"):
            control.stop(run.id)
        assert study.next_run().id == "t0001-s0"
        (result,) = [result for result in study.results() if result.run == "t0000-s1"]
        assert result.outcome is Outcome.PRUNED and "in the queue" in result.message


class TestBranches:
    def settled(self, study, result_of, folder):
        run = study.next_run()
        checkpoint(folder, run.id)
        study.settle(run, result_of(run))
        return run

    def test_extend_goes_on_where_a_run_ended(self, make_sweep, execution, result_of, folder):
        sweep = make_sweep(SPACE)
        with Study.open(sweep, execution) as study:
            parent = self.settled(study, result_of, folder)
            with Control(folder) as control:
                assert control.extend(parent.id, epochs=2) == "t100000-s0"
                with pytest.raises(SpecError, match="--epochs"):
                    control.extend(parent.id, steps=10)
            study._session.sync()
            runs = list(iter(study.next_run, None))
            (branch,) = [run for run in runs if run.parent is not None]
            assert (branch.parent, branch.spec.budget.epochs, branch.spec.method) == (
                parent.id,
                3.0,
                parent.spec.method,
            )
            assert branch.key not in (parent.key, branch.spec.key), (
                "not the experiment that had these settings from step 0"
            )
            assert study.counts().planned_runs == 4
            assert study.settle(branch, result_of(branch, key=branch.key, parent=parent.id, eval_loss=0.1))
            assert study.best() is None or study.best()[0] == 0

    def test_extend_waits_for_a_run_that_trains(self, make_sweep, execution, result_of, folder):
        with Study.open(make_sweep(SPACE), execution) as study:
            parent = study.next_run()
            with Control(folder) as control:
                control.extend(parent.id, epochs=1)
            assert heard(study) == {}
            assert all(run.parent is None for run in iter(study.next_run, None))
            study.settle(parent, result_of(parent))
            assert study.next_run().parent == parent.id

    def test_clone_begins_once_the_checkpoint_is_there(self, make_sweep, execution, folder):
        with Study.open(make_sweep(SPACE), execution) as study:
            parent = study.next_run()
            with Control(folder) as control:
                branch = control.clone(parent.id, {"optimizer.lr": 1e-4})
            assert heard(study) == {parent.id: Order.SAVE}
            list(iter(study.next_run, None))
            study.saved(parent, 17)
            assert study.orders() == {}
            run = study.next_run()
            assert (run.id, run.parent, run.spec.optimizer.lr) == (branch, parent.id, 1e-4)
            assert run.point["optimizer.lr"] == 1e-4 and not run.fresh_optimizer

    def test_what_the_checkpoint_is_of_cannot_change(self, make_sweep, execution, result_of, folder):
        with Study.open(make_sweep(SPACE), execution) as study:
            parent = self.settled(study, result_of, folder)
        with Control(folder) as control:
            for overrides, error in (
                ({"method.r": 4}, "keeps its model, data, method"),
                ({"optimizer.lrr": 4}, "lrr"),
                ({"optimizer.lr": -1.0}, "optimizer.lr"),
                ({"optimizer.lr": parent.spec.optimizer.lr}, "nothing is changed"),
            ):
                with pytest.raises(SpecError, match=error):
                    control.clone(parent.id, overrides)
            (folder / "runs" / parent.id / "checkpoint.safetensors").unlink()
            with pytest.raises(SweepFolderError, match="its last checkpoint is gone"):
                control.extend(parent.id, epochs=1)


def test_prune_files_keeps_the_best_and_all_results(make_sweep, execution, result_of, folder):
    sweep = make_sweep(SPACE)
    with Study.open(sweep, execution) as study:
        for loss in (3.0, 1.0, 2.0):
            run = study.next_run()
            adapter = folder / "runs" / run.id / "adapter"
            adapter.mkdir(parents=True)
            (adapter / "weights").write_bytes(b"x" * 500)
            checkpoint(folder, run.id)
            study.settle(run, result_of(run, eval_loss=loss, adapter=f"runs/{run.id}/adapter"))
    with Control(folder) as control:
        planned = control.prune_files(1, dry=True)
        assert (planned.runs, planned.bytes) == (("t0000-s0", "t0002-s0"), 3000)
        assert (folder / "runs/t0000-s0/adapter").exists()
        assert control.prune_files(1) == planned
        assert control.prune_files(1).runs == ()
    assert sorted(path.parent.name for path in folder.glob("runs/*/adapter")) == ["t0001-s0"]
    with Study.open(sweep, execution) as study:
        assert [(result.eval_loss, result.adapter) for result in study.results()] == [
            (3.0, None),
            (1.0, "runs/t0001-s0/adapter"),
            (2.0, None),
        ]


class TestPortable:
    @pytest.mark.parametrize("name", ["study.json", "study.json.gz"])
    def test_a_study_comes_back_from_one_file(self, make_sweep, execution, result_of, folder, tmp_path, name):
        import dataclasses

        sweep = make_sweep(SPACE)
        with Study.open(sweep, execution) as study:
            run = study.next_run()
            study.settle(run, result_of(run))
            study.next_run()  # in training
            assert export_study(folder, tmp_path / name) == 1
            results = study.results()
        there = tmp_path / "elsewhere" / "again"
        assert import_study(tmp_path / name, there) == 1
        with Study.open(sweep, dataclasses.replace(execution, folder=str(there))) as study:
            assert study.results() == results
            assert study.next_run().id == "t0001-s0"
        with pytest.raises(SweepFolderError, match="there is a sweep already"):
            import_study(tmp_path / name, there)

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("{}", "not a study"),
            ("garbage", "not a study"),
            ('{"format":"lora-lab study","version":99,"log":[]}', "version 99"),
            ('{"format":"lora-lab study","version":1,"log":[{"op":"claim"}]}', "makes no sense"),
            ('{"format":"lora-lab study","version":1,"log":[{"op":"__init__"}]}', "makes no sense"),
            ('{"format":"lora-lab study","version":1,"log":[]}', "no sweep"),
        ],
    )
    def test_a_file_of_another_kind_is_refused(self, tmp_path, text, error):
        (tmp_path / "file.json").write_text(text)
        with pytest.raises((SweepFolderError, StorageError), match=error):
            import_study(tmp_path / "file.json", tmp_path / "sweep")
        assert not (tmp_path / "sweep").exists()

    def test_a_damaged_file_is_refused_wherever_it_is_damaged(self, make_sweep, execution, tmp_path):
        with Study.open(make_sweep(SPACE), execution):
            export_study(Path(execution.folder), tmp_path / "whole.json.gz")
        whole = (tmp_path / "whole.json.gz").read_bytes()
        for place in range(2, len(whole), 7):
            file = tmp_path / "damaged.json.gz"
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            try:
                import_study(file, tmp_path / f"sweep{place}")
            except (SweepFolderError, StorageError):
                assert not (tmp_path / f"sweep{place}").exists()
            else:
                assert place < 10, "only the header may say something else and mean the same"

    def test_the_export_holds_no_pickle_and_the_results_plainly(self, make_sweep, execution, result_of, tmp_path):
        with Study.open(make_sweep(SPACE), execution) as study:
            run = study.next_run()
            study.settle(run, result_of(run))
        export_study(Path(execution.folder), tmp_path / "x.json")
        tree = json.loads((tmp_path / "x.json").read_text())
        assert tree["results"][0]["run"] == "t0000-s0" and tree["sweep"]["name"] == "test"
