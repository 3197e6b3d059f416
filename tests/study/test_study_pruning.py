"""Pruners by what they do to a sweep, rungs that pause and promote, several objectives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from optuna.trial import TrialState
from simulated import Simulated, by_rank, outcomes

from lora_lab.errors import SpecError
from lora_lab.spec import EvalMetrics, Objective, Outcome, Strategy, Verdict, pairs
from lora_lab.study import Study
from lora_lab.study.course import Steps
from lora_lab.study.rungs import Rungs
from lora_lab.study.view import View

RANKS = {"method.r": {"choices": [64, 32, 16, 8, 4, 2, 1]}}
"""The best first: whoever comes later is worse."""


def strategy(name, **options):
    return Strategy(name, pairs(options))


@pytest.mark.parametrize(
    ("pruner", "pruned"),
    [
        (strategy("none"), []),
        (strategy("median", n_startup_trials=2), [2, 3, 4, 5, 6]),
        (strategy("percentile", percentile=99.0, n_startup_trials=2), [2, 3, 4, 5, 6]),
        (strategy("percentile", percentile=10.0, n_startup_trials=5), [5, 6]),
        (strategy("threshold", upper=1.9), [0, 1, 2, 3, 4, 5, 6]),
        (strategy("threshold", upper=1.7, n_warmup_steps=3), [5, 6]),
        (strategy("patience", patience=1, min_delta=0.05), [3, 4, 5, 6]),
        (strategy("patience", patience=1, min_delta=2.0), []),
        (strategy("patience", patience=1, wrapped={"name": "median"}), [5, 6]),
    ],
)
def test_every_pruner_ends_what_its_rule_says(make_sweep, execution, pruner, pruned):
    def rises(spec, seed, step):
        return 1.0 + 1.0 / spec.method.r + (step / 10 if spec.method.r <= 8 else 1 / step)

    with Study.open(make_sweep(RANKS, pruner=pruner), execution) as study:
        done = Simulated(study, rises if pruner.name == "patience" else by_rank, lanes=1).work()
        found = outcomes(study)
    assert [n for n in range(7) if found[f"t{n:04d}-s0"] == "PRUNED"] == pruned
    assert all(done.trained[f"t{n:04d}-s0"] < 8 for n in pruned)


def test_wilcoxon_compares_seed_by_seed(make_sweep, execution):
    """Seeds spread far more than the trials differ: means say nothing, paired seeds do."""

    def loss(spec, seed, step):
        return 1.0 + {8: 0.0, 4: 0.02, 2: 0.01}[spec.method.r] * (1 if seed != 5 or spec.method.r != 2 else -1) + seed

    sweep = make_sweep({"method.r": [8, 4]}, pruner="wilcoxon", repeats=6)
    with Study.open(sweep, execution) as study:
        Simulated(study, loss, lanes=6).work()
        found = outcomes(study)
    assert [found[f"t0000-s{seed}"] for seed in range(6)] == ["COMPLETED"] * 6
    assert "PRUNED" in {found[f"t0001-s{seed}"] for seed in range(6)}


def test_wilcoxon_needs_seeds(make_sweep, execution):
    with pytest.raises(SpecError, match=r"sweep\.repeats=5"):
        Study.open(make_sweep(RANKS, pruner="wilcoxon"), execution)


class TestRungs:
    def test_half_is_promoted_at_each_rung_and_the_best_is_trained_to_its_end(self, make_sweep, execution):
        ranks = {"method.r": {"choices": [128, 64, 32, 16, 8, 4, 2, 1]}}
        sweep = make_sweep(ranks, pruner=strategy("asha", min_resource=1, reduction_factor=2))
        with Study.open(sweep, execution) as study:
            done = Simulated(study, lanes=8).work()
            found = outcomes(study)
            steps = {run: done.trained[run] for run in sorted(found)}
            assert study.counts().runs == study.counts().planned_runs == 8
        assert found["t0000-s0"] == "COMPLETED" and study.best()[1] == {"method.r": 128}
        assert list(found.values()).count("COMPLETED") < 4
        assert sum(step > 1 for step in steps.values()) >= 4
        assert set(steps.values()) <= {1, 2, 4, 8}, "runs end on a rung, or at their end"

    def test_a_paused_run_comes_back_when_it_is_promoted_and_goes_on_where_it_was(self, make_sweep, execution):
        ranks = {"method.r": {"choices": [4, 2, 8, 1]}}
        sweep = make_sweep(ranks, pruner=strategy("asha", min_resource=2, reduction_factor=2))
        with Study.open(sweep, execution) as study:
            done = Simulated(study, lanes=1).work()
            assert done.begun[:4] == ["t0000-s0", "t0001-s0", "t0000-s0", "t0002-s0"]
            assert done.trained["t0001-s0"] == 2

    def test_the_space_may_be_larger_than_the_pack_and_restarts_forget_nothing(self, make_sweep, tmp_path, execution):
        space = {"method.r": {"int": {"low": 1, "high": 64}}}
        sweep = make_sweep(
            space, sampler="random", trials=27, pruner=strategy("asha", reduction_factor=3, min_resource=1)
        )
        with Study.open(sweep, execution) as study:
            Simulated(study, lanes=3).work()
            undisturbed = outcomes(study)
        again = replace(execution, folder=str(tmp_path / "again"))
        trained: dict[str, int] = {}
        for _ in range(60):
            with Study.open(sweep, again) as study:
                Simulated(study, lanes=3, trained=trained).work(most=1)
                if study.counts().runs == 27:
                    break
        with Study.open(sweep, again) as study:
            assert Simulated(study, lanes=3, trained=trained).work().begun == []
            found = outcomes(study)
        assert len(found) == len(undisturbed) == 27
        assert "COMPLETED" in found.values() and list(found.values()).count("PRUNED") > 13

    def test_seeds_of_a_trial_wait_for_each_other_on_a_rung(self, make_sweep, execution):
        sweep = make_sweep({"method.r": [2, 8]}, repeats=2, pruner=strategy("asha", min_resource=2, reduction_factor=2))
        with Study.open(sweep, execution) as study:
            first, second = study.next_run(), study.next_run()
            assert study.report(first, heard(1)) is Verdict.CONTINUE
            assert study.report(first, heard(2, 1.0)) is Verdict.PAUSE
            study.pause(first, settled(study, first))
            assert study.next_run().id == "t0001-s0"
            assert study.report(second, heard(2, 2.0)) is Verdict.PAUSE
            assert study._session.state.steps[0].rungs == [(2, 1.5)]

    def test_a_worker_that_dies_before_it_gives_a_paused_run_back_is_no_loss(self, make_sweep, execution):
        sweep = make_sweep({"method.r": [2, 8]}, pruner=strategy("asha", min_resource=2, reduction_factor=2))
        with Study.open(sweep, execution) as study:
            assert study.report(study.next_run(), heard(2, 1.0)) is Verdict.PAUSE
        with Study.open(sweep, execution) as study:
            run = study.next_run()
            assert run.id == "t0000-s0" and study.report(run, heard(2, 1.0)) is Verdict.PAUSE

    def test_hyperband_gives_each_ladder_its_share(self, make_sweep, execution):
        space = {"method.r": {"int": {"low": 1, "high": 64}}}
        pruner = strategy("hyperband", min_resource=1, max_resource=9, reduction_factor=3)
        sweep = make_sweep(space, sampler="random", trials=40, pruner=pruner)
        with Study.open(sweep, execution) as study:
            done = Simulated(study, lanes=4, steps=9).work()
            rungs = study._session.shadow.judge.rungs
            assert rungs.brackets == (9, 5, 3)
            found = outcomes(study)
        ladders = [rungs.bracket(n) for n in range(40)]
        assert {0, 1, 2} == set(ladders) and ladders.count(0) > ladders.count(2)
        for n, ladder in enumerate(ladders):
            if found[f"t{n:04d}-s0"] == "PRUNED":
                assert done.trained[f"t{n:04d}-s0"] >= 3**ladder
            if ladder == 2:
                assert found[f"t{n:04d}-s0"] == "COMPLETED", "the last ladder has no rung below the end"

    def test_promotion_is_by_rank_among_all_who_reached_the_rung(self):
        rungs = Rungs(1, 3, seed=0)
        values = [0.5, 0.1, 0.9, 0.2, 0.3, 0.8]
        trials = {n: Steps([(1, value)], paused_at=1) for n, value in enumerate(values)}

        def rank(n, rung):
            return trials[n].rungs[rung][1]

        assert rungs.promotable(trials, rank) == [1, 3]
        trials[1].rungs.append((3, 0.05))
        trials[3].paused_at = None
        assert rungs.promotable(trials, rank) == []
        assert rungs.last_chance(trials, rank) == 1

    def test_samplers_learn_from_paused_trials(self, make_sweep, execution):
        space = {"optimizer.lr": {"float": {"low": 1e-5, "high": 1e-1, "log": True}}}
        seen = []
        sweep = make_sweep(
            space, sampler=strategy("tpe", n_startup_trials=3), trials=12, pruner=strategy("asha", min_resource=1)
        )
        with Study.open(sweep, execution) as study:
            Simulated(study, lambda spec, seed, step: abs(spec.optimizer.lr - 1e-3), lanes=1).work()
            seen = [dict(result.point)["optimizer.lr"] for result in study.results()]
        late = [abs(lr - 1e-3) for lr in seen[6:]]
        assert sorted(late)[len(late) // 2] < 5e-3

    def test_a_paused_trial_is_shown_to_samplers_as_a_pruned_one_until_it_goes_on(self, make_sweep, execution):
        sweep = make_sweep({"method.r": [2, 8]}, pruner=strategy("asha", min_resource=2, reduction_factor=2))
        with Study.open(sweep, execution) as study:
            shadow, run = study._session.shadow.study, study.next_run()
            study.report(run, heard(2, 1.5))
            study.pause(run, settled(study, run))
            (seen,) = View(shadow).get_trials(states=(TrialState.PRUNED,))
            assert (seen.number, seen.value) == (0, 1.5)
            assert shadow.get_trials()[0].state is TrialState.RUNNING, "the study itself knows better"
            study.report(study.next_run(), heard(2, 2.5))
            assert study.next_run().id == "t0000-s0", "the better half of two"
            assert [t.number for t in View(shadow).get_trials(states=(TrialState.PRUNED,))] == [1]

    @pytest.mark.parametrize(
        ("pruner", "said"),
        [
            (strategy("asha"), "min_resource"),
            (strategy("asha", min_resource=1, reduction_factor=1), "2 or more"),
            (strategy("asha", min_resource=0), "whole number"),
            (strategy("hyperband", min_resource=1), "max_resource"),
            (strategy("hyperband", min_resource=9, max_resource=3), "below min_resource"),
            (strategy("asha", min_ressource=1), "did you mean 'min_resource'"),
            (strategy("patience", patience=1, wrapped={"name": "none"}), "no pruner 'none'"),
            (strategy("percentile"), "percentile"),
        ],
    )
    def test_options_that_cannot_be_are_refused(self, make_sweep, execution, pruner, said):
        with pytest.raises(SpecError, match=said):
            Study.open(make_sweep(RANKS, pruner=pruner), execution)


def heard(step, loss=1.0):
    return EvalMetrics(step=step, loss=loss, tokens=10, accuracy=0.5, seconds=0.1)


def settled(study, run):
    simulated = Simulated(study, trained={run.id: 2})
    return simulated._result(run, Outcome.PRUNED)


def dearer_by_rank(spec, name):
    return 10.0 * spec.method.r


class TestSeveralObjectives:
    TWO = (Objective("eval_loss"), Objective("lane_bytes"))

    def test_the_front_is_what_nothing_beats_in_everything(self, make_sweep, execution):
        space = {"method.r": [2, 4, 8], "method.dropout": [0.0, 0.1]}

        def loss(spec, seed, step):
            return by_rank(spec, seed, step) + spec.method.dropout

        with Study.open(make_sweep(space, objectives=self.TWO), execution) as study:
            Simulated(study, loss).work()
            found = study.front()
            assert [(point["method.r"], point["method.dropout"]) for _, point, _ in found] == [(8, 0), (4, 0), (2, 0)]
            assert [values[1] for _, _, values in found] == [8000, 4000, 2000]
            assert study.best()[1] == {"method.r": 8, "method.dropout": 0.0}
            assert study._session.shadow.study.best_trials[0].values is not None

    @pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "nsga3", "gp"])
    def test_samplers_optimise_them(self, make_sweep, execution, sampler):
        space = {"method.r": {"int": {"low": 1, "high": 64}}, "method.dropout": {"float": [0.0, 0.5]}}
        sweep = make_sweep(space, sampler=sampler, trials=12, objectives=self.TWO)
        with Study.open(sweep, execution) as study:
            Simulated(study).work()
            assert len(study.results()) == 12 and len(study.front()) > 1

    def test_pruning_spares_what_is_worse_but_cheaper(self, make_sweep, execution):
        """Ranks fall from the best and dearest to the worst and cheapest: all of them are on the front."""
        median = strategy("median", n_startup_trials=2)
        with Study.open(make_sweep(RANKS, pruner=median, objectives=self.TWO), execution, dearer_by_rank) as study:
            Simulated(study, lanes=1).work()
            assert set(outcomes(study).values()) == {"COMPLETED"}
        elsewhere = replace(execution, folder=execution.folder + "-blind")
        with Study.open(make_sweep(RANKS, pruner=median, objectives=self.TWO), elsewhere) as study:
            Simulated(study, lanes=1).work()
            assert list(outcomes(study).values()).count("PRUNED") == 5, "without figures only the loss is known"

    def test_rungs_spare_them_too(self, make_sweep, execution):
        asha = strategy("asha", min_resource=1, reduction_factor=2)
        space = {"method.r": [64, 32, 16, 8], "method.dropout": [0.0, 0.4]}

        def loss(spec, seed, step):
            return by_rank(spec, seed, step) + spec.method.dropout

        with Study.open(make_sweep(space, pruner=asha, objectives=self.TWO), execution, dearer_by_rank) as study:
            Simulated(study, loss, lanes=8).work()
            steps = [(dict(r.point)["method.dropout"], r.steps) for r in study.results()]
        assert all((step > 1) == (dropout == 0.0) for dropout, step in steps), steps

    def test_a_pruner_needs_one_that_is_seen_while_it_trains(self, make_sweep, execution):
        two = (Objective("train_loss"), Objective("seconds"))
        with pytest.raises(SpecError, match="judges by eval_loss"):
            Study.open(make_sweep(RANKS, pruner="median", objectives=two), execution)
