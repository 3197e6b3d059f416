"""Asking, handing out and settling, within one process."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import pytest
from optuna.trial import TrialState

from lora_lab.errors import SpecError
from lora_lab.spec import (
    Choices,
    EvalMetrics,
    FloatRange,
    IntRange,
    Objective,
    Outcome,
    Strategy,
    Verdict,
    all_masks,
    pairs,
)
from lora_lab.study import Study


def all_runs(study):
    runs = []
    while (run := study.next_run()) is not None:
        runs.append(run)
    return runs


def trained(study, result_of):
    while (run := study.next_run()) is not None:
        assert study.settle(run, result_of(run))
    return study.results()


def evaluation(step, loss):
    return EvalMetrics(step=step, loss=loss, tokens=10, accuracy=0.5, seconds=0.1)


def optuna_trial(study, number):
    return study._session.shadow.study.trials[number]


def test_grid_is_handed_out_in_its_written_order_all_seeds_of_a_trial_together(make_sweep, execution):
    with Study.open(make_sweep(repeats=2), execution) as study:
        runs = all_runs(study)
    assert [run.id for run in runs] == [f"t{trial:04d}-s{seed}" for trial in range(9) for seed in range(2)]
    assert [(run.point["method.r"], run.point["method.alpha_over_r"]) for run in runs[::2]] == [
        (r, a) for r in (2, 8, 32) for a in (0.5, 1, 2)
    ]
    assert runs[5].spec.method.r == 2 and runs[5].spec.method.scaling == 2.0 and runs[5].spec.seed == 1


def test_seeds_count_from_the_seed_of_the_base(make_sweep, execution):
    base = dataclasses.replace(make_sweep().base, seed=7)
    with Study.open(make_sweep(base=base, repeats=2), execution) as study:
        assert [run.seed for run in all_runs(study)[:2]] == [7, 8]


def test_trials_limits_the_grid(make_sweep, execution):
    with Study.open(make_sweep(trials=2), execution) as study:
        assert len(all_runs(study)) == 2


def test_counts_follow_the_sweep(make_sweep, execution, result_of):
    with Study.open(make_sweep(repeats=2), execution) as study:
        counts = study.counts()
        assert (counts.trials, counts.planned_trials, counts.runs, counts.planned_runs) == (0, 9, 0, 18)
        first, second = study.next_run(), study.next_run()
        study.settle(first, result_of(first))
        study.settle(second, result_of(second, Outcome.FAILED, message="bug"))
        third = study.next_run()
        counts = study.counts()
        assert (counts.trials, counts.runs, counts.planned_runs, counts.running) == (2, 2, 18, 1)
        assert counts.by_outcome == {"COMPLETED": 1, "FAILED": 1}
        study.put_back(third)
        trained(study, result_of)
        assert study.counts().running == 0
        assert study.counts().runs == 18


def test_a_run_put_back_keeps_its_place(make_sweep, execution):
    with Study.open(make_sweep(repeats=2), execution) as study:
        first, second, third = study.next_run(), study.next_run(), study.next_run()
        study.put_back(second)
        study.put_back(first)
        assert [study.next_run().id for _ in range(3)] == [first.id, second.id, "t0001-s1"]
        assert third.id == "t0001-s0"


def test_settle_is_exactly_once(make_sweep, execution, result_of, caplog):
    with Study.open(make_sweep(), execution) as study:
        run = study.next_run()
        assert study.settle(run, result_of(run, eval_loss=1.0)) is True
        assert study.settle(run, result_of(run, eval_loss=2.0)) is False
        assert study.results()[0].eval_loss == 1.0
        assert "settled already" in caplog.text


def test_settle_refuses_what_does_not_settle(make_sweep, execution, result_of):
    with Study.open(make_sweep(), execution) as study:
        run, other = study.next_run(), study.next_run()
        with pytest.raises(ValueError, match="cannot settle"):
            study.settle(run, result_of(other))
        with pytest.raises(ValueError, match="put it back"):
            study.settle(run, result_of(run, Outcome.PREEMPTED))
        assert study.results() == []


@pytest.mark.parametrize(
    ("outcomes", "state", "value"),
    [
        (("COMPLETED", "COMPLETED"), TrialState.COMPLETE, 2.0),
        (("COMPLETED", "FAILED"), TrialState.COMPLETE, 1.5),
        (("COMPLETED", "PRUNED"), TrialState.PRUNED, None),
        (("COMPLETED", "DIVERGED"), TrialState.COMPLETE, 3.0),
        (("PRUNED", "DIVERGED"), TrialState.COMPLETE, 3.0),
        (("FAILED", "OUT_OF_MEMORY"), TrialState.FAIL, None),
        (("PRUNED", "FAILED"), TrialState.PRUNED, None),
    ],
)
def test_what_the_sampler_is_told(make_sweep, execution, result_of, outcomes, state, value):
    with Study.open(make_sweep(repeats=2), execution) as study:
        runs = [study.next_run(), study.next_run()]
        for run, outcome, loss in zip(runs, outcomes, (1.5, 2.5), strict=True):
            fields = {"eval_loss": loss} if outcome == "COMPLETED" else {}
            study.settle(run, result_of(run, Outcome(outcome), **fields))
        assert optuna_trial(study, 0).state is state
        assert optuna_trial(study, 0).value == value


def test_a_trial_is_told_only_when_all_its_runs_are_settled(make_sweep, execution, result_of):
    with Study.open(make_sweep(repeats=2), execution) as study:
        first, second = study.next_run(), study.next_run()
        study.settle(second, result_of(second))
        assert optuna_trial(study, 0).state is TrialState.RUNNING
        assert study.best() is None
        study.settle(first, result_of(first))
        assert optuna_trial(study, 0).state is TrialState.COMPLETE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_first_trial_is_told_a_finite_value(make_sweep, execution, result_of, bad):
    with Study.open(make_sweep(), execution) as study:
        run = study.next_run()
        study.settle(run, result_of(run, Outcome.DIVERGED, eval_loss=bad, base_eval_loss=bad))
        assert optuna_trial(study, 0).value == 100.0
        assert study.best() is None


def test_diverged_is_told_the_worst_value_for_a_maximised_metric_too(make_sweep, execution, result_of):
    base = make_sweep().base
    base = dataclasses.replace(base, evaluation=dataclasses.replace(base.evaluation, exact_match=True))
    sweep = make_sweep(base=base, objective=Objective("exact_match", "maximize"))
    with Study.open(sweep, execution) as study:
        one, two, three = (study.next_run() for _ in range(3))
        study.settle(one, result_of(one, exact_match=0.6, base_exact_match=0.02))
        study.settle(two, result_of(two, exact_match=0.4, base_exact_match=0.02))
        study.settle(three, result_of(three, Outcome.DIVERGED))
        assert optuna_trial(study, 2).value == 0.02
        assert study.best() == (0, one.point, 0.6)


def test_best_is_the_mean_over_seeds(make_sweep, execution, result_of):
    with Study.open(make_sweep(repeats=2), execution) as study:
        losses = iter([1.0, 3.0, 1.5, 1.7])  # the best single run is not of the best trial
        for _ in range(4):
            run = study.next_run()
            study.settle(run, result_of(run, eval_loss=next(losses)))
        number, point, value = study.best()
        assert (number, value) == (1, pytest.approx(1.6))
        assert point == {"method.r": 2, "method.alpha_over_r": 1}


class TestSameExperiment:
    """Points that are two spellings of one experiment: alpha = 16 at r = 8 with an empty mask, say."""

    SPACE: ClassVar = {"method.roles": {"masks": [[], ["query"]]}, "method.r": {"choices": [2, 8]}}

    def test_is_trained_once_and_shared(self, make_sweep, execution, result_of):
        with Study.open(make_sweep(self.SPACE), execution) as study:
            run = study.next_run()
            study.settle(run, result_of(run, adapter="runs/t0000-s0/adapter"))
            assert study.next_run().id == "t0002-s0"
            copy = study.results()[1]
            assert (copy.run, copy.trial, copy.outcome) == ("t0001-s0", 1, Outcome.COMPLETED)
            assert copy.message == "same experiment as t0000-s0"
            assert dict(copy.point) == {"method.roles": (), "method.r": 8}
            assert copy.adapter == "runs/t0000-s0/adapter"
            assert optuna_trial(study, 1).value == optuna_trial(study, 0).value

    def test_waits_for_its_twin_that_is_training(self, make_sweep, execution, result_of):
        with Study.open(make_sweep(self.SPACE), execution) as study:
            runs = all_runs(study)
            assert [run.id for run in runs] == ["t0000-s0", "t0002-s0", "t0003-s0"]
            study.settle(runs[0], result_of(runs[0]))
            assert [result.run for result in study.results()] == ["t0000-s0", "t0001-s0"]

    def test_is_trained_after_all_when_its_twin_fails(self, make_sweep, execution, result_of):
        with Study.open(make_sweep(self.SPACE), execution) as study:
            runs = all_runs(study)
            study.settle(runs[0], result_of(runs[0], Outcome.FAILED, message="bug"))
            assert study.next_run().id == "t0001-s0"

    def test_goes_first_come_first_served_when_its_twin_is_put_back(self, make_sweep, execution):
        with Study.open(make_sweep(self.SPACE), execution) as study:
            runs = all_runs(study)
            study.put_back(runs[0])
            assert study.next_run().id == "t0000-s0"
            assert study.next_run() is None

    def test_seeds_are_not_the_same_experiment(self, make_sweep, execution):
        with Study.open(make_sweep(self.SPACE, repeats=2), execution) as study:
            assert [run.id for run in all_runs(study)][:2] == ["t0000-s0", "t0000-s1"]


class TestPruner:
    def test_needs_all_seeds_of_a_trial_at_a_step(self, make_sweep, execution, result_of):
        with Study.open(make_sweep(pruner="median", repeats=2), execution) as study:
            for _ in range(5):  # Optuna's five start-up trials
                runs = study.next_run(), study.next_run()
                for run in runs:
                    assert study.report(run, evaluation(10, 1.0)) is Verdict.CONTINUE
                for run in runs:
                    study.settle(run, result_of(run))
            bad = study.next_run(), study.next_run()
            assert study.report(bad[0], evaluation(0, 9.0)) is Verdict.CONTINUE
            assert study.report(bad[0], evaluation(10, 2.0)) is Verdict.CONTINUE
            assert study.report(bad[1], evaluation(10, 1.5)) is Verdict.STOP
            assert optuna_trial(study, 5).intermediate_values == {10: 1.75}
            assert study.report(bad[0], evaluation(20, 0.1)) is Verdict.STOP
            for run in bad:
                study.settle(run, result_of(run, Outcome.PRUNED))
            assert optuna_trial(study, 5).state is TrialState.PRUNED

    def test_a_mean_that_is_good_goes_on_though_one_seed_is_bad(self, make_sweep, execution, result_of):
        with Study.open(make_sweep(pruner="median", repeats=2), execution) as study:
            for _ in range(5):
                for run in (study.next_run(), study.next_run()):
                    study.report(run, evaluation(10, 1.0))
                    study.settle(run, result_of(run))
            first, second = study.next_run(), study.next_run()
            assert study.report(first, evaluation(10, 1.5)) is Verdict.CONTINUE
            assert study.report(second, evaluation(10, 0.4)) is Verdict.CONTINUE

    def test_losses_reported_before_a_kill_still_count(self, make_sweep, execution, result_of):
        sweep = make_sweep(pruner="median", repeats=2)
        with Study.open(sweep, execution) as study:
            for _ in range(5):
                for run in (study.next_run(), study.next_run()):
                    study.report(run, evaluation(10, 1.0))
                    study.settle(run, result_of(run))
            study.report(study.next_run(), evaluation(10, 2.0))
        with Study.open(sweep, execution) as study:
            first, second = study.next_run(), study.next_run()
            assert study.report(second, evaluation(10, 1.5)) is Verdict.STOP
        with Study.open(sweep, execution) as study:
            assert study.report(study.next_run(), evaluation(20, 0.1)) is Verdict.STOP
            assert first.trial == 5

    def test_nan_is_left_to_the_engine(self, make_sweep, execution):
        with Study.open(make_sweep(pruner="median"), execution) as study:
            run = study.next_run()
            assert study.report(run, evaluation(10, math.nan)) is Verdict.CONTINUE
            assert optuna_trial(study, 0).intermediate_values == {}

    def test_cannot_judge_another_metric(self, make_sweep, execution):
        with pytest.raises(SpecError, match=r"pruner=none"):
            Study.open(make_sweep(pruner="median", objective=Objective("train_loss")), execution)


class TestSamplers:
    SPACE: ClassVar = {
        "optimizer.lr": {"float": {"low": 1e-5, "high": 1e-2, "log": True}},
        "method.r": {"int": {"low": 2, "high": 64, "log": True}},
        "method.dropout": {"float": {"low": 0.0, "high": 0.3, "step": 0.1}},
        "method.roles": {"masks": "all"},
        "budget.batch_size": {"int": {"low": 1, "high": 8, "step": 3}},
        "method.layers": {"choices": [[], [0], [0, 1]]},
    }

    @pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
    def test_draws_every_kind_of_domain_within_its_bounds(self, make_sweep, execution, result_of, sampler):
        sweep = make_sweep(self.SPACE, sampler=sampler, trials=14)
        with Study.open(sweep, execution) as study:
            results = trained(study, result_of)
        points = [dict(result.point) for result in results]
        assert len(points) == 14
        domains = dict(sweep.space.domains)
        for point in points:
            for path, value in point.items():
                match domains[path]:
                    case Choices(values):
                        assert value in values
                    case IntRange(low, high, step, log):
                        assert isinstance(value, int) and low <= value <= high and (log or (value - low) % step == 0)
                    case FloatRange(low, high, _, _):
                        assert low <= value <= high
        assert len({point["optimizer.lr"] for point in points}) == 14
        assert len({point["method.roles"] for point in points}) > 3

    @pytest.mark.parametrize("sampler", ["random", "tpe"])
    def test_points_do_not_depend_on_restarts(self, make_sweep, tmp_path, execution, result_of, sampler):
        sweep = make_sweep(self.SPACE, sampler=sampler, trials=13)
        with Study.open(sweep, execution) as study:
            undisturbed = trained(study, result_of)
        again = dataclasses.replace(execution, folder=str(tmp_path / "again"))
        while True:
            with Study.open(sweep, again) as study:
                if (run := study.next_run()) is None:
                    disturbed = study.results()
                    break
                study.settle(run, result_of(run))
        assert disturbed == undisturbed
        assert len({result.point for result in disturbed}) == 13

    def test_the_sweep_seed_changes_the_points(self, make_sweep, tmp_path, execution):
        points = []
        for seed in (0, 1):
            elsewhere = dataclasses.replace(execution, folder=str(tmp_path / str(seed)))
            with Study.open(make_sweep(self.SPACE, sampler="random", trials=3, seed=seed), elsewhere) as study:
                points.append([run.point for run in all_runs(study)])
        assert points[0] != points[1]

    @pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "qmc"])
    def test_masks_are_six_booleans_and_stay_within_the_list(self, make_sweep, execution, result_of, sampler):
        masks = [["query"], ["query", "value"], ["mlp", "head"], []]
        trials = None if sampler == "grid" else 25
        with Study.open(make_sweep({"method.roles": {"masks": masks}}, sampler=sampler, trials=trials), execution) as s:
            results = trained(s, result_of)
            params = [trial.params for trial in s._session.shadow.study.trials]
        assert {dict(result.point)["method.roles"] for result in results} == {tuple(mask) for mask in masks}
        for result, values in zip(results, params, strict=True):
            assert set(values) == {
                f"method.roles.{role}" for role in ("query", "key", "value", "projection", "mlp", "head")
            }
            assert {name.rsplit(".", 1)[1] for name, on in values.items() if on is True} == set(
                dict(result.point)["method.roles"]
            )

    def test_the_grid_of_all_masks_is_all_64(self, make_sweep, execution):
        with Study.open(make_sweep({"method.roles": {"masks": "all"}}), execution) as study:
            assert [run.point["method.roles"] for run in all_runs(study)] == list(all_masks())

    def test_choices_that_python_confuses_stay_apart(self, make_sweep, execution):
        space = {"method.rslora": {"choices": [True, False]}, "evaluation.every_steps": {"choices": [None, 1, 2]}}
        with Study.open(make_sweep(space), execution) as study:
            points = [run.point for run in all_runs(study)]
        assert points[:2] == [
            {"method.rslora": True, "evaluation.every_steps": None},
            {"method.rslora": True, "evaluation.every_steps": 1},
        ]

    def test_a_point_that_no_run_accepts_is_refused_and_counted(self, make_sweep, execution, result_of):
        space = {"budget.batch_size": {"int": [1, 8]}, "budget.micro_batch_size": {"int": [1, 8]}}
        base = dataclasses.replace(make_sweep().base)
        base = dataclasses.replace(base, budget=dataclasses.replace(base.budget, batch_size=8, micro_batch_size=1))
        sweep = make_sweep(space, base=base, sampler="random", trials=20)
        for _ in range(2):
            with Study.open(sweep, execution) as study:
                trained(study, result_of)
                counts = study.counts()
                assert 0 < counts.refused < 20
                assert counts.runs == counts.planned_runs == 20 - counts.refused

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"sampler": Strategy("tpee"), "trials": 1}, "did you mean 'tpe'"),
            ({"sampler": Strategy("tpe", pairs({"n_startup": 3})), "trials": 1}, "did you mean 'n_startup_trials'"),
            ({"sampler": Strategy("qmc", pairs({"qmc_type": "sobel"})), "trials": 1}, "refuses its options"),
            ({"sampler": Strategy("grid", pairs({"x": 1}))}, "takes none"),
            ({"pruner": Strategy("medain")}, "did you mean 'median'"),
            ({"pruner": Strategy("median", pairs({"interval_steps": 0}))}, "at least 1"),
        ],
    )
    def test_unknown_strategies_and_options_are_refused(self, make_sweep, execution, tmp_path, fields, message):
        with pytest.raises(SpecError, match=message):
            Study.open(make_sweep(**fields), execution)
        assert not (tmp_path / "sweep").exists()
