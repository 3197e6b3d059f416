"""When a sweep ends: stop rules, racing, what a trial is worth over its seeds."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import ClassVar

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from simulated import Simulated

from lora_lab.spec import Objective, Outcome, RunResult, Stop
from lora_lab.study import Study
from lora_lab.study.improvement import expected_improvement
from lora_lab.study.racing import contenders
from lora_lab.study.stopping import busy_seconds
from lora_lab.study.verdict import front, since_best, value_of

LR = {"optimizer.lr": {"float": {"low": 1e-5, "high": 1e-1, "log": True}}}
RANKS = {"method.r": {"choices": [2, 4, 8, 16, 32, 64]}}


class TestStopRules:
    @pytest.mark.parametrize(
        ("stop", "trials", "said"),
        [
            (Stop(trials=3), 3, "3 trials are settled"),
            (Stop(tokens=1500), 2, "1,600 tokens were trained on"),
            (Stop(target=1.3), 3, "the best value is 1.25"),
            (Stop(target=0.5), 6, None),
            (Stop(trials=100, target=1.3), 3, "the best value"),
        ],
    )
    def test_each_rule_ends_the_sweep_and_says_so(self, make_sweep, execution, stop, trials, said):
        with Study.open(make_sweep(RANKS, stop=stop), execution) as study:
            Simulated(study, lanes=1).work()
            counts = study.counts()
            assert len(study.results()) == counts.trials == trials
            assert (counts.stopped or "").startswith(said or "") and (said is None) == (counts.stopped is None)
            assert counts.runs == counts.planned_runs and not study.waiting()

    def test_no_improvement(self, make_sweep, execution):
        ranks = {"method.r": {"choices": [2, 8, 4, 1, 64, 32]}}
        with Study.open(make_sweep(ranks, stop=Stop(no_improvement=2)), execution) as study:
            Simulated(study, lanes=1).work()
            assert len(study.results()) == 4 and study.counts().stopped.startswith("no better value in 2 trials")

    def test_improvement_is_counted_in_the_order_of_settling(self, make_sweep, execution, result_of):
        ranks = {"method.r": {"choices": [64, 2, 4, 8, 16]}}
        with Study.open(make_sweep(ranks, stop=Stop(no_improvement=2)), execution) as study:
            best, *others = [study.next_run() for _ in range(3)]
            for run in (*others, best):
                study.settle(run, result_of(run))
            assert study.next_run() is not None, "the best is the last that was settled, though the first asked"

    def test_seconds_are_those_in_which_something_trained(self):
        runs = [
            RunResult("a", 0, 0, "k", Outcome.COMPLETED, started=s, ended=e) for s, e in [(0, 10), (5, 12), (50, 60)]
        ]
        assert busy_seconds(runs, opened=58.0, now=65.0) == 12 + 15
        assert busy_seconds([], opened=3.0, now=4.5) == 1.5

    def test_wall_time(self, make_sweep, execution):
        def hours(run):
            return {"started": 1e6 + 3600 * run.trial, "ended": 1e6 + 3600 * (run.trial + 1)}

        with Study.open(make_sweep(RANKS, stop=Stop(seconds=9000)), execution) as study:
            Simulated(study, lanes=1, fields=hours).work()
            assert len(study.results()) == 3 and "sweep.stop.seconds=9000" in study.counts().stopped

    def test_what_runs_when_a_rule_holds_runs_to_its_end(self, make_sweep, execution):
        with Study.open(make_sweep(RANKS, stop=Stop(trials=1)), execution) as study:
            Simulated(study, lanes=4).work()
            assert [r.outcome for r in study.results()] == [Outcome.COMPLETED] * 4

    def test_a_sweep_with_a_later_end_goes_on(self, make_sweep, execution):
        with Study.open(make_sweep(RANKS, stop=Stop(trials=2)), execution) as study:
            Simulated(study, lanes=1).work()
        with Study.open(make_sweep(RANKS, stop=Stop(trials=2)), execution) as study:
            assert study.next_run() is None
        with Study.open(make_sweep(RANKS, stop=Stop(trials=4)), execution) as study:
            assert Simulated(study, lanes=1).work().begun == ["t0002-s0", "t0003-s0"]


class TestExpectedImprovement:
    def trials(self, count, value, seed=0):
        generator = random.Random(seed)
        space = {"x": FloatDistribution(0.0, 1.0), "c": CategoricalDistribution(("a", "b"))}
        out = []
        for _ in range(count):
            params = {"x": generator.random(), "c": generator.choice(["a", "b"])}
            out.append(create_trial(state=TrialState.COMPLETE, value=value(params), params=params, distributions=space))
        return out

    def test_it_is_large_before_the_valley_is_found_and_small_after(self):
        def valley(p):
            return (p["x"] - 0.3) ** 2 + (0.5 if p["c"] == "a" else 0.0)

        few, many = expected_improvement(self.trials(8, valley), 1), expected_improvement(self.trials(60, valley), 1)
        assert few > 2 * many and many == pytest.approx(min(t.value for t in self.trials(60, valley)), rel=0.2)
        assert expected_improvement(self.trials(7, valley), 1) is None

    def test_it_counts_in_the_units_and_the_direction_of_the_objective(self):
        slope = self.trials(12, lambda p: p["x"])
        steep = self.trials(12, lambda p: -10 * p["x"])
        assert expected_improvement(steep, -1) == pytest.approx(10 * expected_improvement(slope, 1), rel=0.05)

    def test_noise_alone_promises_little(self):
        generator = random.Random(1)
        noise = self.trials(60, lambda p: generator.gauss(1.0, 0.1))
        assert expected_improvement(noise, 1) < 0.05

    def test_it_ends_a_sweep(self, make_sweep, execution):
        def loss(spec, seed, step):
            return 1.0 + math.log10(spec.optimizer.lr / 1e-3) ** 2 / 10

        sweep = make_sweep(LR, sampler="tpe", trials=80, stop=Stop(expected_improvement=1e-3))
        with Study.open(sweep, execution) as study:
            Simulated(study, loss, lanes=1).work()
            assert 8 <= len(study.results()) < 80 and "expected to improve" in study.counts().stopped
            assert study.best()[2] < 1.01


class TestRacing:
    SPACE: ClassVar = {"method.r": {"choices": [1, 2, 4, 8]}}

    def noisy(self, spec, seed, step):
        jitter = random.Random(f"{spec.method.r}/{seed}").uniform(-0.01, 0.01)
        return {1: 3.0, 2: 1.02, 4: 1.015, 8: 1.01}[spec.method.r] + jitter

    def test_contenders_get_further_seeds_and_the_others_none(self, make_sweep, execution):
        sweep = make_sweep(self.SPACE, max_repeats=5)
        with Study.open(sweep, execution) as study:
            done = Simulated(study, self.noisy).work()
            seeds = [sum(r.trial == n for r in study.results()) for n in range(4)]
            assert done.begun[:4] == [f"t{n:04d}-s0" for n in range(4)], "every point once, before any is repeated"
            assert seeds[0] == 1 and max(seeds) == 5 and sum(seed > 1 for seed in seeds) >= 2
            assert study.counts().runs == study.counts().planned_runs == sum(seeds)
            number, _, value = study.best()
            own = [r.eval_loss for r in study.results() if r.trial == number]
            assert value == pytest.approx(sum(own) / len(own)), "the best is so over all its seeds"
            assert study._session.shadow.study.trials[number].value == pytest.approx(value), "and so the sampler hears"

    def test_a_race_that_was_stopped_goes_on(self, make_sweep, tmp_path, execution):
        sweep = make_sweep(self.SPACE, max_repeats=5)
        with Study.open(sweep, execution) as study:
            Simulated(study, self.noisy).work()
            whole = [r.run for r in study.results()]
        again = replace(execution, folder=str(tmp_path / "again"))
        for _ in range(20):
            with Study.open(sweep, again) as study:
                Simulated(study, self.noisy).work(most=2)
        with Study.open(sweep, again) as study:
            assert [r.run for r in study.results()] == whole

    def test_one_clear_winner_needs_no_race(self, make_sweep, execution):
        def clear(spec, seed, step):
            return 1.0 / spec.method.r + seed * 1e-6

        with Study.open(make_sweep(self.SPACE, repeats=2, max_repeats=5), execution) as study:
            assert len(Simulated(study, clear).work().begun) == 8

    def test_contenders_by_a_t_test_with_the_pooled_spread(self):
        values = {0: [1.0, 1.2], 1: [1.1, 1.3], 2: [2.0, 2.2], 3: [1.6]}
        assert contenders(values, Objective()) == [0, 1]
        assert contenders(values, Objective(direction="maximize")) == [2]
        assert contenders({0: [3.0], 1: [1.0], 2: [2.0], 3: [4.0]}, Objective()) == [1, 2]

    def test_a_trial_that_diverged_with_one_seed_does_not_race(self, make_sweep, execution, result_of):
        with Study.open(make_sweep({"method.r": [2, 4, 8]}, max_repeats=3), execution) as study:
            for outcome in (Outcome.DIVERGED, Outcome.COMPLETED, Outcome.COMPLETED):
                run = study.next_run()
                study.settle(run, result_of(run, outcome))
            assert [study.next_run(company=True).id for _ in range(2)] == ["t0001-s1", "t0002-s1"]


@pytest.mark.parametrize(("value", "expected"), [("mean", 2.0), ("lower", 0.3141), ("upper", 3.6859)])
def test_the_value_of_a_trial_is_its_mean_or_an_end_of_its_interval(value, expected):
    results = [RunResult(f"r{n}", 0, n, "k", Outcome.COMPLETED, eval_loss=float(n)) for n in (1, 2, 3)]
    assert value_of(results, Objective(value=value)) == pytest.approx(expected, abs=1e-4)
    assert value_of(results[:1], Objective(value=value)) == 1.0


def test_a_pessimist_prefers_what_is_sure(make_sweep, execution):
    def loss(spec, seed, step):
        return {2: 1.0, 8: 0.95 + 0.3 * (-1) ** seed}[spec.method.r] + seed * 1e-4

    for value, best in (("mean", 8), ("upper", 2)):
        here = replace(execution, folder=f"{execution.folder}-{value}")
        sweep = make_sweep({"method.r": [2, 8]}, repeats=4, objective=Objective(value=value))
        with Study.open(sweep, here) as study:
            Simulated(study, loss).work()
            assert study.best()[1] == {"method.r": best}


def test_the_front_and_the_last_improvement():
    two = (Objective("eval_loss"), Objective("exact_match", "maximize"))
    assert front([(1.0, 0.5), (2.0, 0.9), (2.0, 0.4), (1.0, 0.5), (3.0, 0.9)], two) == [0, 1, 3]
    assert front([], two) == []
    values = [3.0, 1.0, 2.0, 1.0, 5.0]
    assert [since_best(values[:n], Objective()) for n in range(1, 6)] == [0, 0, 1, 2, 3]
    assert since_best(values, Objective(direction="maximize")) == 0
