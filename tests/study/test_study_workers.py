"""Several workers on one study: who holds what, who is taken for dead, and what a result is worth that comes late."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from processes import until

from lora_lab.spec import Execution, LauncherSpec, Order, Outcome
from lora_lab.study import Study
from lora_lab.study.entries import WorkerState
from lora_lab.study.lease import Watch, this_process
from lora_lab.study.log import Unreachable

SPACE = {"method.r": {"choices": [2, 4, 8, 16]}}


@pytest.fixture(params=["file", "sqlite", "postgresql"])
def shared(request, tmp_path):
    """An execution on each storage."""
    url = None
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/study.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").database(f"workers{abs(hash(tmp_path)) % 10**9}")
    return Execution(str(tmp_path / "sweep"), storage=url)


def sleepy(execution):
    """The same for a worker that will fall silent, and is to be missed soon."""
    return dataclasses.replace(execution, launcher=LauncherSpec(lease_seconds=0.6))


def fall_silent(study):
    """The worker's process is stopped: neither its lease nor its keeper goes on."""
    study._lease.end()
    study._keeper.stop()


def events(study, op):
    study._session.sync()
    return [event for event in study._session.log.read(0) if event["op"] == op]


def test_workers_hold_different_runs_and_settle_all_once(make_sweep, shared, result_of):
    sweep = make_sweep(SPACE, repeats=2)
    with Study.open(sweep, shared) as one, Study.open(sweep, shared) as other:
        seen = []
        while one.waiting() or other.waiting():
            for study in (one, other):
                if (run := study.next_run()) is not None:
                    seen.append(run.id)
                    assert study.settle(run, result_of(run))
        assert sorted(seen) == [f"t000{t}-s{s}" for t in range(4) for s in range(2)]
        assert one.counts().runs == 8 and len(events(one, "settle")) == 8


def test_a_silent_worker_loses_its_runs_and_its_late_result_is_refused(make_sweep, shared, result_of, caplog):
    sweep = make_sweep(SPACE)
    with Study.open(sweep, sleepy(shared)) as asleep, Study.open(sweep, shared) as awake:
        lost = asleep.next_run()
        awake.next_run()
        fall_silent(asleep)
        until(lambda: awake._session.state.runs[lost.id].holder is None, "the lapse")
        again = awake.next_run()
        assert (again.id, again.attempt) == (lost.id, 2)
        assert "no sign of life" in caplog.text
        assert asleep.settle(lost, result_of(lost, eval_loss=9.0)) is False
        assert "a late result (COMPLETED) is refused" in caplog.text
        assert [(event["run"], event["outcome"]) for event in events(awake, "late")] == [(lost.id, "COMPLETED")]
        assert awake.settle(again, result_of(again, eval_loss=1.0))
        assert asleep.settle(lost, result_of(lost, eval_loss=9.0)) is False
        assert [result.eval_loss for result in awake.results()] == [1.0]
        assert json.loads((Path(shared.folder) / "runs" / lost.id / "result.json").read_text())["eval_loss"] == 1.0


def test_a_worker_that_wakes_up_drops_what_it_lost_and_joins_anew(make_sweep, shared, caplog):
    sweep = make_sweep(SPACE)
    with Study.open(sweep, sleepy(shared)) as asleep, Study.open(sweep, shared) as awake:
        lost = asleep.next_run()
        awake.next_run()
        fall_silent(asleep)
        until(lambda: awake._session.state.runs[lost.id].holder is None, "the lapse")
        until(lambda: asleep.orders() == {lost.id: Order.DROP}, "the news")
        asleep.put_back(lost)  # changes nothing: it is not its own any more
        assert awake.next_run().id == lost.id
        assert asleep.next_run().id not in (lost.id, "t0001-s0")
        assert "taken for dead and goes on under a new name" in caplog.text
        assert len(events(awake, "join")) == 3


def _hold(sweep, execution, ready):
    study = Study.open(sweep, execution)
    study.next_run()
    ready.set()
    time.sleep(600)


def test_a_killed_process_of_this_machine_is_not_waited_for(make_sweep, execution):
    shared = dataclasses.replace(execution, launcher=LauncherSpec(lease_seconds=600.0))
    sweep = make_sweep(SPACE)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(sweep, shared, ready))
    holder.start()
    assert ready.wait(300)
    with Study.open(sweep, shared) as study:
        assert study.next_run().id == "t0001-s0"
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        until(lambda: study._session.state.runs["t0000-s0"].holder is None, "the lapse")
        assert study.next_run().id == "t0000-s0"


def test_a_closed_worker_gives_back_what_it_held_at_once(make_sweep, execution):
    sweep = make_sweep(SPACE)
    with Study.open(sweep, execution) as study:
        with Study.open(sweep, execution) as other:
            assert other.next_run().id == "t0000-s0"
        run = study.next_run()
        assert (run.id, run.attempt) == ("t0000-s0", 2)
        assert study.counts().workers == 1


def test_the_tail_of_a_sweep_is_shared(make_sweep, execution):
    sweep = make_sweep(SPACE, repeats=2)
    with Study.open(sweep, execution) as one, Study.open(sweep, execution) as other:
        first, second = one.next_run(), other.next_run()
        assert first and second
        for study in (one, other):  # half of the eight, and no more
            assert len(list(iter(study.next_run, None))) == 3
        assert one.waiting()


class TestWatch:
    """Nobody's clock is compared with anybody's: what counts is how long a counter stood still on the watcher's."""

    def worker(self, name="w", lease=30.0):
        return {name: WorkerState(name, lease, {"host": "elsewhere", "boot": "other", "pid": 1, "born": "1"})}

    def watch(self, times):
        ticks = iter(times)
        return Watch(lambda: next(ticks))

    def test_lapses_when_the_counter_stood_still_for_the_lease(self):
        watch = self.watch(itertools.count(0.0, 5.0))
        found = [bool(watch.lapsed(self.worker(), {"w": 7})) for _ in range(9)]
        assert found == [False] * 7 + [True] * 2

    def test_lives_while_it_counts_however_slowly(self):
        watch = self.watch(itertools.count(0.0, 5.0))
        assert not any(watch.lapsed(self.worker(), {"w": n // 6}) for n in range(60))

    def test_a_watcher_that_slept_judges_nobody_by_that(self):
        watch = self.watch([0.0, 1.0, 2.0, 500.0, 501.0, 529.0, 531.0])
        assert [bool(watch.lapsed(self.worker(), {"w": 1})) for _ in range(5)] == [False] * 5

    def test_a_process_of_this_machine_that_runs_is_alive(self):
        watch = self.watch(itertools.count(0.0, 1.0))
        state = {"w": WorkerState("w", 30.0, this_process())}
        gone = {"w": WorkerState("w", 30.0, this_process() | {"born": "1"})}
        assert not watch.lapsed(state, {"w": 1})
        assert "gone" in watch.lapsed(gone, {"w": 1})["w"]


class TestTryingAgain:
    def test_out_of_memory_is_tried_alone_then_in_smaller_parts_then_recorded(self, make_sweep, execution, result_of):
        base = make_sweep().base
        base = dataclasses.replace(base, budget=dataclasses.replace(base.budget, batch_size=8, micro_batch_size=4))
        with Study.open(make_sweep(SPACE, base=base), execution) as study:
            tries = []
            run = study.next_run()
            while True:
                tries.append((run.alone, run.halvings))
                if not study.try_again(run, Outcome.OUT_OF_MEMORY, company=not run.alone):
                    break
                beside = study.next_run(company=True)
                assert beside is None or beside.id != run.id
                (run,) = [r for r in iter(study.next_run, None) if r.id == run.id]
            assert tries == [(False, 0), (True, 0), (True, 1), (True, 2)]
            assert study.settle(run, result_of(run, Outcome.OUT_OF_MEMORY))
            assert study.counts().by_outcome == {"OUT_OF_MEMORY": 1}

    def test_a_failure_in_company_is_tried_alone_once(self, make_sweep, execution):
        with Study.open(make_sweep(SPACE), execution) as study:
            run = study.next_run()
            assert study.try_again(run, Outcome.FAILED, company=True)
            again = study.next_run()
            assert again.id == run.id and again.alone
            assert not study.try_again(again, Outcome.FAILED, company=False)

    def test_equal_failures_stop_the_sweep_and_the_same_command_goes_on(self, make_sweep, execution, result_of):
        sweep = make_sweep({"method.r": {"choices": [2, 4, 8, 16, 32]}})
        with Study.open(sweep, execution) as study:
            for number in range(3):
                assert study.counts().halted is None
                run = study.next_run()
                study.settle(run, result_of(run, Outcome.FAILED, message=f"Traceback…\nKeyError: 'column {number}'"))
            assert study.counts().halted == "3 runs failed with the same error: KeyError: 'column 2'"
            assert study.next_run() is None and not study.waiting()
        with Study.open(sweep, execution) as study:
            assert study.next_run().id == "t0003-s0"

    def test_different_failures_do_not(self, make_sweep, execution, result_of):
        with Study.open(make_sweep({"method.r": {"choices": [2, 4, 8, 16, 32]}}), execution) as study:
            for error in ("KeyError: 'a'", "KeyError: 'b'", "ValueError"):
                run = study.next_run()
                study.settle(run, result_of(run, Outcome.FAILED, message=error))
            assert study.next_run() is not None

    def test_a_run_whose_workers_die_is_tried_alone_and_given_up_at_last(self, make_sweep, execution):
        sweep = make_sweep({"method.r": {"choices": [2]}})
        alone = []
        with Study.open(sweep, execution) as watcher:
            while (run := watcher.next_run()) is not None:
                alone.append(run.alone)
                name = watcher._lease.worker
                watcher._session.transact(lambda name=name: watcher._session.do("lapse", worker=name, why="test"))
            assert alone == [False] * 3 + [True] * 8
            (result,) = watcher.results()
            assert result.outcome is Outcome.FAILED and "lost 11 times" in result.message


class TestUncertainWrites:
    """A commit may have succeeded though its writer saw an error."""

    @pytest.mark.parametrize("durable", [True, False])
    def test_a_settle_counts_once(self, make_sweep, shared, result_of, monkeypatch, durable):
        with Study.open(make_sweep(SPACE), shared) as study:
            run = study.next_run()
            real, calls = study._session.log.exclusive, []

            def breaks(meanwhile):
                calls.append(1)
                if len(calls) > 1:
                    return real(meanwhile)
                return Breaking(real(meanwhile), durable)

            monkeypatch.setattr(study._session.log, "exclusive", breaks)
            assert study.settle(run, result_of(run))
            assert len(calls) == 2
            assert len(events(study, "settle")) == 1
            assert [result.run for result in study.results()] == [run.id]


class Breaking:
    """A transaction whose connection breaks at its end: after it became durable, or before."""

    def __init__(self, inner, durable):
        self.inner, self.durable = inner, durable

    def __enter__(self):
        append = self.inner.__enter__()
        return append if self.durable else lambda events: None

    def __exit__(self, *error):
        self.inner.__exit__(*error)
        raise Unreachable("sqlite://", OSError("the connection broke"))
