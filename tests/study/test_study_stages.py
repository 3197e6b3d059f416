"""Stage trees: which runs share their beginning, in which order they come, and that the record says so."""

from __future__ import annotations

import pytest

from lora_lab.spec import Outcome
from lora_lab.spec.prefix import prefix_of, staged
from lora_lab.study import Study
from lora_lab.worker.stages import stem_of

LENGTHS = {"budget.steps": [12, 4, 8], "optimizer.lr": [1e-3, 1e-2]}


def constant(make_sweep, **more):
    return make_sweep().base.at({"schedule.name": "constant", "budget.steps": 4, **more})


@pytest.mark.parametrize(
    ("change", "is_one"),
    [
        ({"budget.steps": 8}, True),
        ({"budget.steps": 4}, False),
        ({"budget.steps": 2}, False),
        ({"budget.steps": None, "budget.epochs": 2.0}, False),
        ({"budget.steps": 8, "seed": 1}, False),
        ({"budget.steps": 8, "optimizer.lr": 0.1}, False),
        ({"budget.steps": 8, "data.train_size": 10}, False),
        ({"budget.steps": 8, "budget.batch_size": 4}, False),
        ({"budget.steps": 8, "evaluation.every_steps": 2}, False),
        ({"budget.steps": 8, "optimizer.momentum": 0.5}, True),
        ({"budget.steps": 8, "schedule.name": "linear"}, False),
    ],
)
def test_a_run_begins_as_another_does_when_nothing_differs_but_its_length(make_sweep, change, is_one):
    first = constant(make_sweep)
    assert prefix_of(first, first.at(change)) is is_one


def test_a_rate_that_falls_to_the_end_shares_nothing(make_sweep):
    linear = constant(make_sweep, **{"schedule.name": "linear"})
    assert not prefix_of(linear, linear.at({"budget.steps": 8}))
    assert stem_of(linear, 8) == 1, "the first step only"
    assert stem_of(linear.at({"schedule.warmup_steps": 3}), 8) == 4, "the warm-up, and the first step after it"
    assert stem_of(constant(make_sweep, **{"schedule.warmup_steps": 3}), 8) == 8


def test_only_sweeps_that_search_a_length_share(make_sweep):
    assert staged(make_sweep(LENGTHS)) and not staged(make_sweep())
    assert not staged(make_sweep(LENGTHS, pruner="median"))


def test_longer_runs_wait_for_shorter_ones_and_begin_from_the_longest(make_sweep, execution, result_of):
    base = constant(make_sweep)
    with Study.open(make_sweep(LENGTHS, base=base), execution) as study:
        first = [study.next_run(company=n > 0) for n in range(3)]
        # t0000 is asked, and then its beginning: 12 steps, lr 1e-3; then t0001: lr 1e-2; then those of 4 steps.
        assert [run.id for run in first[:2]] == ["t0000-s0", "t0001-s0"]
        assert first[2].id == "t0002-s0" and all(run.stage is None and run.stem for run in first)
        fourth = study.next_run(company=True)
        assert fourth.id == "t0003-s0"
        assert study.next_run(company=True) is None, "8 steps wait for the 4 that are being trained"
        study.settle(first[2], result_of(first[2]))
        eight = study.next_run(company=True)
        assert (eight.id, eight.stage) == ("t0004-s0", "t0002-s0")
        study.settle(fourth, result_of(fourth, Outcome.DIVERGED))
        other = study.next_run(company=True)
        assert (other.id, other.stage) == ("t0005-s0", None), "what diverged is no beginning"


def test_lengths_in_rising_order_are_all_shared(make_sweep, execution, result_of):
    base = constant(make_sweep)
    space = {"budget.steps": [4, 8, 12]}
    with Study.open(make_sweep(space, base=base, repeats=2), execution) as study:
        stages = {}
        while (run := study.next_run()) is not None:
            stages[run.id] = run.stage
            study.settle(run, result_of(run))
    assert stages == {
        **{f"t0000-s{seed}": None for seed in (0, 1)},
        **{f"t0001-s{seed}": f"t0000-s{seed}" for seed in (0, 1)},
        **{f"t0002-s{seed}": f"t0001-s{seed}" for seed in (0, 1)},
    }
