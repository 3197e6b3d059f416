"""The spool keeps what happened, in order, whatever happens to the disk or the process."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from lora_lab.spec import RunSpec, from_tree
from lora_lab.tracking import Spool
from lora_lab.tracking.spool import read_spool, spool_path


@pytest.fixture
def run(training):
    return next(training.runs())


def lines(training, name="t0000-s0"):
    return [json.loads(line) for line in spool_path(training.folder, name).read_text().splitlines()]


def steps(training, kind="step"):
    return [line["step"] for line in lines(training) if line["kind"] == kind]


def test_one_numbered_line_for_everything_that_happens(training, run):
    name, trial, point, spec = run
    training.record(name, spec)
    training.spool.ended(training.settle(name, trial, point, spec))
    got = lines(training)
    assert [line["n"] for line in got] == list(range(9))
    assert [line["kind"] for line in got] == [
        *("started", "evaluation", "step", "step", "evaluation", "step", "step", "evaluation", "ended")
    ]
    assert got[0]["total_steps"] == 4 and from_tree(RunSpec, got[0]["spec"]) == spec
    assert {k: v for k, v in got[2].items() if k not in ("n", "time", "kind")} == vars(training.step(1))
    assert got[-1]["outcome"] == "COMPLETED"
    assert all(a["time"] <= b["time"] for a, b in itertools.pairwise(got))


def test_each_line_is_readable_at_once(training, run):
    training.spool.started(run[0], run[3], 4, 0)
    training.spool.step(run[0], training.step(1))
    assert steps(training) == [1]


def test_runs_of_one_pack_do_not_mix(training):
    first, second, *_ = training.runs()
    for name, _, _, spec in (first, second):
        training.spool.started(name, spec, 4, 0)
    for step in (1, 2):
        for name, *_ in (first, second):
            training.spool.step(name, training.step(step))
    assert [line["kind"] for line in lines(training, second[0])] == ["started", "step", "step"]


def test_lines_beyond_the_checkpoint_are_cut_on_resume(training, run):
    training.record(run[0], run[3], last=5)
    again = Spool(training.folder)  # a new process, from the checkpoint of step 3
    again.started(run[0], run[3], 6, 3)
    assert steps(training) == [1, 2, 3]
    assert steps(training, "evaluation") == [0, 2]
    again.step(run[0], training.step(4))
    numbers = [line["n"] for line in lines(training)]
    assert steps(training) == [1, 2, 3, 4]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 10  # the cut lines' numbers are not used again


def test_a_run_begun_anew_begins_its_file_anew(training, run):
    training.record(run[0], run[3])
    Spool(training.folder).started(run[0], run[3], 4, 0)
    assert [line["kind"] for line in lines(training)] == ["started"]
    assert lines(training)[0]["n"] == 8


def test_a_step_that_comes_twice_replaces_what_was_said_of_it(training, run):
    training.record(run[0], run[3])
    training.spool.step(run[0], training.step(3))
    assert steps(training) == [1, 2, 3]
    assert steps(training, "evaluation") == [0, 2, 4]


def test_a_torn_last_line_is_cut_on_resume(training, run):
    training.record(run[0], run[3])
    path = spool_path(training.folder, run[0])
    path.write_bytes(path.read_bytes()[:-7])
    assert [record["step"] for record in read_spool(path)[0] if record["kind"] == "evaluation"] == [0, 2]
    again = Spool(training.folder)
    again.started(run[0], run[3], 4, 4)
    again.evaluation(run[0], training.evaluation(4))
    assert steps(training) == [1, 2, 3, 4]
    assert steps(training, "evaluation") == [0, 2, 4]


def test_reading_goes_on_where_it_stopped_and_leaves_a_line_in_the_making(training, run):
    training.spool.started(run[0], run[3], 4, 0)
    path = spool_path(training.folder, run[0])
    records, offset = read_spool(path)
    assert len(records) == 1
    with path.open("ab") as file:
        file.write(b'{"n": 1, "kind": "st')
    assert read_spool(path, offset) == ([], offset)
    with path.open("ab") as file:
        file.write(b'ep", "step": 1}\n')
    assert [record["step"] for record in read_spool(path, offset)[0]] == [1]


def test_a_full_disk_loses_lines_says_so_once_and_never_stops_training(training, run, monkeypatch, caplog):
    training.spool.started(run[0], run[3], 4, 0)
    real = os.write

    def full(handle, data):
        real(handle, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for step in (1, 2):
            training.spool.step(run[0], training.step(step))
    training.spool.step(run[0], training.step(3))
    assert training.spool.lost == {run[0]: 2}
    assert caplog.text.count("metrics are being lost") == 1
    assert steps(training) == [3]  # and no half line before it


def test_an_unwritable_folder_never_stops_training(training, run):
    (training.folder / "runs").write_text("a file where a folder should be")
    training.record(run[0], run[3])
    assert training.spool.lost[run[0]] > 0


def test_close_leaves_no_file_open(training, run):
    before = len(list(Path("/proc/self/fd").iterdir()))
    training.record(run[0], run[3])
    training.spool.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
