"""A sweep that was stopped anywhere goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import shutil
from pathlib import Path

import optuna
import pytest

from lora_lab.errors import CheckpointError, StorageError, SweepFolderError
from lora_lab.spec import Execution, Outcome, Space, Sweep, pairs
from lora_lab.study import Study
from lora_lab.study.look import look


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, and nothing after it runs."""


def train_until(sweep, execution, result_of, dies=None):
    """Train in order; ``dies(study)`` arms the place where the process is killed. True when nothing is left."""
    study = Study.open(sweep, execution)
    try:
        if dies is not None:
            dies(study)
        while (run := study.next_run()) is not None:
            study.settle(run, result_of(run))
    except Killed:
        return False
    finally:
        study.close()
    return True


def kill(owner, name, monkeypatch, *, at=1, after=False):
    """Die at the ``at``-th call of a method: before it does anything, or after it did all."""
    real, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == at and not after:
            raise Killed
        value = real(*args, **kwargs)
        if len(calls) == at:
            raise Killed
        return value

    monkeypatch.setattr(owner, name, dying)


def state_of(study):
    trials = [(t.number, t.state, t.value, t.params, t.user_attrs) for t in study._session.shadow.study.trials]
    return study.results(), trials, study.best(), study.counts()


def killed_while_appending(study, patch, *, at, after):
    """Die at the ``at``-th append to the study's log: before a byte of it is written, or after all are durable."""
    kill(study._session.log._lines, "append", patch, at=at, after=after)


PLACES = {
    "before a run is handed out": lambda s, m: killed_while_appending(s, m, at=5, after=False),
    "after a run is handed out": lambda s, m: killed_while_appending(s, m, at=5, after=True),
    "before a run is settled": lambda s, m: killed_while_appending(s, m, at=6, after=False),
    "after a run is settled": lambda s, m: killed_while_appending(s, m, at=6, after=True),
    "before result.json is written": lambda s, m: kill(s._folder, "store_result", m, at=4),
    "after result.json is written": lambda s, m: kill(s._folder, "store_result", m, at=4, after=True),
}


@pytest.mark.parametrize("sampler", ["grid", "random"])
@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_the_same_command_goes_on(
    make_sweep, tmp_path, execution, result_of, monkeypatch, place, sampler
):
    trials = None if sampler == "grid" else 5
    space = {"method.r": {"choices": [2, 8, 32]}, "method.alpha_over_r": {"choices": [1, 2]}}
    sweep = make_sweep(space, repeats=2, sampler=sampler, trials=trials)
    with monkeypatch.context() as patch:
        assert train_until(sweep, execution, result_of, lambda study: PLACES[place](study, patch)) is False
    assert train_until(sweep, execution, result_of)
    undisturbed = Execution(folder=str(tmp_path / "undisturbed"))
    assert train_until(sweep, undisturbed, result_of)
    with Study.open(sweep, execution) as one, Study.open(sweep, undisturbed) as other:
        assert one.next_run() is None
        assert state_of(one) == state_of(other)


def test_interrupted_runs_come_first_in_their_order(make_sweep, execution, result_of):
    sweep = make_sweep(repeats=2)
    with Study.open(sweep, execution) as study:
        runs = [study.next_run() for _ in range(5)]
        study.settle(runs[2], result_of(runs[2]))
        study.put_back(runs[3])
    with Study.open(sweep, execution) as study:
        again = [study.next_run() for _ in range(5)]
        assert [run.id for run in again] == ["t0000-s0", "t0000-s1", "t0001-s1", "t0002-s0", "t0002-s1"]
        assert again[0] == runs[0]


def test_a_finished_sweep_has_nothing_left(make_sweep, execution, result_of):
    sweep = make_sweep()
    assert train_until(sweep, execution, result_of)
    before = (Path(execution.folder) / "study.journal").read_bytes()
    with Study.open(sweep, execution) as study:
        assert not study.waiting()
        assert study.next_run() is None
        assert study.counts().runs == study.counts().planned_runs == 9
    assert (Path(execution.folder) / "study.journal").read_bytes() == before


def test_results_that_are_there_are_left_alone(make_sweep, execution, result_of, caplog):
    """Whatever they hold: a second start neither writes them again nor says that they were torn."""
    sweep = make_sweep()
    with Study.open(sweep, execution) as study:
        for fields in (
            {"scores": pairs({"exact_match.sorting": 0.5}), "base_scores": pairs({"exact_match.sorting": 0.0})},
            {"outcome": Outcome.DIVERGED, "eval_loss": math.nan, "train_loss": math.inf},
        ):
            run = study.next_run()
            study.settle(run, result_of(run, **fields))
    files = sorted(Path(execution.folder).glob("runs/*/result.json"))
    before = [path.stat().st_mtime_ns for path in files]
    Study.open(sweep, execution).close()
    assert len(files) == 2 and [path.stat().st_mtime_ns for path in files] == before
    assert "torn" not in caplog.text


def test_repeats_and_trials_may_grow(make_sweep, execution, result_of):
    assert train_until(make_sweep(trials=3), execution, result_of)
    grown = make_sweep(trials=4, repeats=2)
    with Study.open(grown, execution) as study:
        assert study.best() is None  # its second seeds are missing
        assert study.counts().planned_runs == 8
        handed_out = []
        while (run := study.next_run()) is not None:
            handed_out.append(run.id)
            study.settle(run, result_of(run))
    assert handed_out == ["t0000-s1", "t0001-s1", "t0002-s1", "t0003-s0", "t0003-s1"]
    with Study.open(grown, execution) as study:
        assert study.next_run() is None
        assert len(study.results()) == 8
        assert study.best() is not None
    assert json.loads((Path(execution.folder) / "sweep.json").read_text())["repeats"] == 2


def test_the_space_may_be_written_in_another_order(make_sweep, execution, result_of):
    sweep = make_sweep()
    with Study.open(sweep, execution) as study:
        for _ in range(2):
            run = study.next_run()
            study.settle(run, result_of(run))
    turned = dataclasses.replace(sweep, space=Space(sweep.space.domains[::-1]))
    assert turned.key == sweep.key
    assert train_until(turned, execution, result_of)
    with Study.open(turned, execution) as study:
        assert len({result.key for result in study.results()}) == 9


def test_a_renamed_sweep_goes_on_in_its_journal(make_sweep, execution, result_of):
    assert train_until(make_sweep(name="before"), execution, result_of)
    with Study.open(make_sweep(name="after"), execution) as study:
        assert study.next_run() is None


class TestOtherSweep:
    def test_is_refused_with_what_differs(self, make_sweep, execution):
        Study.open(make_sweep(), execution).close()
        base = make_sweep().base
        other = make_sweep(
            {"method.r": {"choices": [2, 8]}, "method.alpha_over_r": {"choices": [0.5, 1, 2]}},
            base=dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, lr=1e-3), seed=5),
        )
        with pytest.raises(SweepFolderError) as caught:
            Study.open(other, execution)
        message = str(caught.value)
        assert "optimizer.lr: 0.0003 there, 0.001 now" in message
        assert "seed: 0 there, 5 now" in message
        assert "sweep.space.method.r.choices: [2, 8, 32] there, [2, 8] now" in message
        assert "--fresh" in message and "sweep.name=" in message
        assert "dropout" not in message
        Study.open(make_sweep(), execution).close()  # the refused one left it as it was

    def test_is_refused_by_the_storage_when_the_folder_is_new(self, make_sweep, tmp_path):
        url = f"sqlite:///{tmp_path}/study.db"
        Study.open(make_sweep(), Execution(folder=str(tmp_path / "one"), storage=url)).close()
        other = make_sweep({"method.r": {"choices": [4]}})
        with pytest.raises(SweepFolderError, match=r"study 'test' in the storage belongs to another sweep"):
            Study.open(other, Execution(folder=str(tmp_path / "two"), storage=url))
        named = dataclasses.replace(other, name="other")
        Study.open(named, Execution(folder=str(tmp_path / "two"), storage=url)).close()

    def test_a_study_of_somebody_else_is_left_alone(self, make_sweep, tmp_path):
        url = f"sqlite:///{tmp_path}/study.db"
        storage = optuna.storages.RDBStorage(url)
        optuna.create_study(storage=storage, study_name="test").ask()
        storage.remove_session()
        storage.engine.dispose()
        with pytest.raises(SweepFolderError, match="not made by lora-lab"):
            Study.open(make_sweep(), Execution(folder=str(tmp_path / "one"), storage=url))


class TestFolder:
    def test_sweep_json_holds_the_tree_and_the_key(self, make_sweep, execution):
        sweep = make_sweep()
        Study.open(sweep, execution).close()
        tree = json.loads((Path(execution.folder) / "sweep.json").read_text())
        assert tree.pop("key") == sweep.key
        assert Sweep.from_tree(tree) == sweep

    def test_where_a_file_stands_in_the_way(self, make_sweep, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(SweepFolderError, match=r"sweep\.dir=FOLDER"):
            Study.open(make_sweep(), Execution(folder=str(tmp_path / "file" / "sweep")))

    @pytest.mark.parametrize("folder", ["sweep", "deep/er"])
    def test_without_permission(self, make_sweep, tmp_path, folder):
        Study.open(make_sweep(), Execution(folder=str(tmp_path / "first"))).close()  # all imports done
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep").chmod(0o555)
        tmp_path.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(SweepFolderError, match=r"No permission to write there: .*sweep\.dir=FOLDER"):
                Study.open(make_sweep(), Execution(folder=str(tmp_path / folder)))
        finally:
            if root:
                os.seteuid(0)
            tmp_path.chmod(0o755)

    def test_on_a_full_disk(self, make_sweep, execution, monkeypatch):
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
        with pytest.raises(SweepFolderError, match=r"only 1\.0 MiB are free"):
            Study.open(make_sweep(), execution)


class TestDamage:
    def finished(self, make_sweep, execution, result_of):
        sweep = make_sweep({"method.r": {"choices": [2, 8, 32]}})
        assert train_until(sweep, execution, result_of)
        with Study.open(sweep, execution) as study:
            return sweep, study.results(), Path(execution.folder)

    @pytest.mark.parametrize("bytes_torn", [1, 30])
    def test_a_torn_last_line_of_the_log_is_cut_back(self, make_sweep, execution, result_of, caplog, bytes_torn):
        sweep, results, folder = self.finished(make_sweep, execution, result_of)
        path = folder / "study.log"
        path.write_bytes(path.read_bytes()[:-bytes_torn])  # the worker's leave
        with Study.open(sweep, execution) as study:
            assert "torn" in caplog.text
            assert study.results() == results
            assert study.next_run() is None
        assert all(json.loads(line) for line in path.read_text().splitlines())

    def test_a_line_that_another_writer_left_torn_is_cut_before_the_next(self, make_sweep, execution, result_of):
        sweep = make_sweep()
        path = Path(execution.folder) / "study.log"
        with Study.open(sweep, execution) as study:
            run = study.next_run()
            with path.open("ab") as file:
                file.write(b'{"op":"settle","run":"t0000-s0","resu')
            assert study.settle(run, result_of(run))
        assert all(json.loads(line) for line in path.read_text().splitlines())
        with Study.open(sweep, execution) as study:
            assert [result.run for result in study.results()] == [run.id]

    def test_stock_optuna_reads_the_journal(self, make_sweep, execution, result_of):
        _, results, folder = self.finished(make_sweep, execution, result_of)
        backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
        study = optuna.load_study(study_name="test", storage=optuna.storages.JournalStorage(backend))
        assert [trial.value for trial in study.trials] == [result.eval_loss for result in results]

    def test_a_spoilt_line_in_the_middle_is_named(self, make_sweep, execution, result_of):
        sweep, results, folder = self.finished(make_sweep, execution, result_of)
        path = folder / "study.log"
        lines = path.read_text().splitlines(keepends=True)
        lines[4] = "garbage\n"
        path.write_text("".join(lines))
        with pytest.raises(StorageError, match=r"study\.log line 5: not JSON.*Move the file away"):
            Study.open(sweep, execution)
        path.unlink()
        with Study.open(sweep, execution) as study:
            assert study.results() == results

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("garbage", "line 5: not JSON"),
            ('{"op": "settle", "run": 1}', "event 4 of the study's log ('settle') makes no sense"),
            ("4", "event 4 of the study's log (4) makes no sense"),
        ],
    )
    def test_who_looks_at_a_spoilt_log_is_told(self, make_sweep, execution, result_of, caplog, line, why):
        _, _, folder = self.finished(make_sweep, execution, result_of)
        assert look(folder) is not None and gc.isenabled()
        path = folder / "study.log"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:4], line, *lines[5:], ""]))
        assert look(folder) is None and gc.isenabled()
        assert f"{folder}: its study cannot be read now: " in caplog.text and why in caplog.text
        caplog.clear()
        path.unlink()
        assert look(folder) is None and not caplog.text, "there is none, and nothing to be said of it"

    def test_a_spoilt_journal_is_made_again(self, make_sweep, execution, result_of, caplog):
        sweep, _, folder = self.finished(make_sweep, execution, result_of)
        (folder / "study.journal").write_text("garbage\n")
        Study.open(sweep, execution).close()
        assert "made again" in caplog.text
        self.test_stock_optuna_reads_the_journal(make_sweep, execution, result_of)

    @pytest.mark.parametrize("lost", ["study.log", "study.journal", "study.log study.journal", "sweep.json"])
    def test_lost_files_are_made_again_from_the_others(self, make_sweep, execution, result_of, lost):
        sweep, results, folder = self.finished(make_sweep, execution, result_of)
        for name in lost.split():
            (folder / name).unlink()
        with Study.open(sweep, execution) as study:
            assert study.next_run() is None
            assert study.results() == results
            values = [trial.value for trial in study._session.shadow.study.trials]
            assert values == [result.eval_loss for result in results]
        assert all((folder / name).exists() for name in lost.split())

    def test_a_lost_log_with_a_trial_that_had_no_result(self, make_sweep, execution, result_of):
        sweep = make_sweep(repeats=2)
        with Study.open(sweep, execution) as study:
            runs = [study.next_run() for _ in range(7)]
            study.settle(runs[6], result_of(runs[6]))
        (Path(execution.folder) / "study.log").unlink()
        (Path(execution.folder) / "study.journal").unlink()
        with Study.open(sweep, execution) as study:
            assert [study.next_run().id for _ in range(7)] == [*(run.id for run in runs[:6]), "t0003-s1"]

    def test_the_whole_folder_comes_back_from_a_database(self, make_sweep, tmp_path, result_of):
        execution = Execution(folder=str(tmp_path / "sweep"), storage=f"sqlite:///{tmp_path}/study.db")
        sweep, results, folder = self.finished(make_sweep, execution, result_of)
        shutil.rmtree(folder)
        with Study.open(sweep, execution) as study:
            assert study.results() == results
            assert study.next_run() is None
        assert len(list(folder.glob("runs/*/result.json"))) == 3

    def test_a_torn_result_comes_back_from_the_storage(self, make_sweep, execution, result_of, caplog):
        sweep, results, folder = self.finished(make_sweep, execution, result_of)
        path = folder / "runs" / "t0001-s0" / "result.json"
        path.write_text(path.read_text()[:50])
        with Study.open(sweep, execution) as study:
            assert study.results() == results
        assert "restored from the storage" in caplog.text

    def test_a_torn_result_without_a_copy_is_named_and_may_be_moved_away(self, make_sweep, execution, result_of):
        sweep, _, folder = self.finished(make_sweep, execution, result_of)
        (folder / "study.log").unlink()
        path = folder / "runs" / "t0001-s0" / "result.json"
        path.write_text(path.read_text()[:50])
        with pytest.raises(CheckpointError, match=r"t0001-s0/result\.json: torn"):
            Study.open(sweep, execution)
        path.unlink()
        with Study.open(sweep, execution) as study:
            assert study.next_run().id == "t0001-s0"

    def test_a_result_of_another_experiment_is_not_taken(self, make_sweep, execution, result_of):
        sweep, results, folder = self.finished(make_sweep, execution, result_of)
        (folder / "study.log").unlink()
        path = folder / "runs" / "t0001-s0" / "result.json"
        path.write_text(json.dumps(results[1].to_tree() | {"key": "0" * 64}))
        with pytest.raises(CheckpointError, match="another experiment"):
            Study.open(sweep, execution)

    def test_no_space_while_settling_leaves_the_run_unsettled(self, make_sweep, execution, result_of, monkeypatch):
        sweep = make_sweep()
        with Study.open(sweep, execution) as study:
            run = study.next_run()
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
                with pytest.raises(SweepFolderError, match="disk is full"):
                    study.settle(run, result_of(run))
            assert study.results() == []
            assert study.settle(run, result_of(run))

    def test_no_space_in_the_log_leaves_it_as_it_was(self, make_sweep, execution, result_of, monkeypatch):
        sweep = make_sweep()
        study = Study.open(sweep, execution)
        run = study.next_run()
        path = Path(execution.folder) / "study.log"
        before = path.read_bytes()
        real = os.write

        def half(file, data):
            real(file, data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(SweepFolderError, match="disk is full"):
                study.settle(run, result_of(run))
        assert path.read_bytes() == before
        study.close()


class TestStorage:
    def test_sqlite_keeps_the_study(self, make_sweep, tmp_path, result_of):
        execution = Execution(folder=str(tmp_path / "sweep"), storage=f"sqlite:///{tmp_path}/study.db")
        sweep = make_sweep({"method.r": {"choices": [2, 8]}}, repeats=2)
        with Study.open(sweep, execution) as study:
            run = study.next_run()
            study.settle(run, result_of(run, Outcome.COMPLETED))
        with Study.open(sweep, execution) as study:
            assert [r.run for r in study.results()] == ["t0000-s0"]
            assert study.next_run().id == "t0000-s1"
        assert not (tmp_path / "sweep" / "study.journal").exists()

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("sqlite:////nowhere/at/all/study.db", "cannot be reached"),
            ("not a url", "not a database URL"),
            ("nosuchdb://host/x", "cannot be reached|driver"),
        ],
    )
    def test_unreachable_is_said(self, make_sweep, tmp_path, url, message):
        with pytest.raises(StorageError, match=message):
            Study.open(make_sweep(), Execution(folder=str(tmp_path / "sweep"), storage=url))

    def test_a_password_is_never_shown(self, make_sweep, tmp_path):
        url = "postgresql+psycopg://me:s3cret@127.0.0.1:9/lab"
        with pytest.raises(StorageError) as caught:
            Study.open(make_sweep(), Execution(folder=str(tmp_path / "sweep"), storage=url))
        assert "s3cret" not in str(caught.value)
        assert "127.0.0.1" in str(caught.value)

    def test_a_database_that_goes_away_is_said(self, make_sweep, tmp_path, result_of):
        database = tmp_path / "study.db"
        execution = Execution(folder=str(tmp_path / "sweep"), storage=f"sqlite:///{database}")
        sweep = make_sweep()
        with Study.open(sweep, execution) as study:
            run = study.next_run()
            database.write_bytes(b"")
            with pytest.raises(StorageError, match="what was settled is safe"):
                study.settle(run, result_of(run))
        database.unlink()
        with Study.open(sweep, execution) as study:
            assert study.next_run() == run
