"""Populations: who is replaced and by what, that nobody overtakes, and what a copy may not change."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import Simulated, outcomes

from lora_lab.errors import SpecError, SweepFolderError
from lora_lab.spec import EvalMetrics, ModelSpec, Outcome, RunSpec, Space, Strategy, pairs
from lora_lab.spec.domains import ends, listed
from lora_lab.study import Study
from lora_lab.study.population import Population, another_optimizer, goes_on, perturbable

SPACE = {
    "method.r": [2, 8],
    "optimizer.lr": {"float": {"low": 1e-4, "high": 1e-1, "log": True}},
    "optimizer.name": ["adamw", "sgd"],
    "optimizer.momentum": {"float": {"low": 0.0, "high": 0.9}, "when": {"optimizer.name": "sgd"}},
}
BASE = RunSpec(model=ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})))


def bred(make_sweep, trials=8, **options):
    pruner = Strategy("population", pairs({"interval": 2, **options}))
    return make_sweep(SPACE, sampler="random", trials=trials, pruner=pruner)


def by_rate(spec, seed, step):
    """The greater the rate, the better."""
    return 2.0 - spec.optimizer.lr + seed / 1000 + 1.0 / step


def rate(result):
    return dict(result.point)["optimizer.lr"]


def test_the_worst_go_on_as_copies_of_the_best(make_sweep, execution):
    with Study.open(bred(make_sweep), execution) as study:
        Simulated(study, by_rate, lanes=3, steps=8).work()
        results = {result.trial: result for result in study.results()}
        counts, best = study.counts(), study.best()
        copies = {n: t.origin for n, t in study._session.state.trials.items() if t.origin is not None}
    assert [step for _, step in copies.values()] == [2, 2, 4, 4, 6, 6], "a quarter of 8, at each interval"
    whole = {n for n, result in results.items() if result.outcome is Outcome.COMPLETED}
    assert len(whole) == 8 and len(results) == 14 and all(results[n].steps == 8 for n in whole)
    assert (counts.runs, counts.planned_runs, counts.trials) == (14, 14, 14)
    firsts = sorted(range(8), key=lambda n: -rate(results[n]))
    assert {results[n].message for n in firsts[-2:]} == {
        f"replaced at step 2 by trial {n}, which goes on from trial {copies[n][0]}" for n in (8, 9)
    }
    assert {copies[8][0], copies[9][0]} <= set(firsts[:2])
    for number, (of, _) in copies.items():
        mine, other = dict(results[number].point), dict(results[of].point)
        assert mine["method.r"] == other["method.r"] and mine != other
    assert best is not None and best[0] == max(whole, key=lambda n: rate(results[n]))


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_company_decides_nothing(make_sweep, execution, tmp_path, lanes):
    def table(name, lanes):
        with Study.open(bred(make_sweep), replace(execution, folder=str(tmp_path / name))) as study:
            Simulated(study, by_rate, lanes=lanes).work()
            return [(r.run, r.outcome, r.point, r.key, r.steps, r.message) for r in study.results()]

    assert table("few", lanes) == table("all", 8)


def test_every_seed_of_a_copy_goes_on_from_the_same_seed(make_sweep, execution):
    with Study.open(replace(bred(make_sweep, trials=4), repeats=2), execution) as study:
        done = Simulated(study, by_rate, lanes=5, steps=5).work()
        results = study.results()
    assert {run for run in done.begun if int(run[1:5]) >= 4} == {f"t000{n}-s{s}" for n in (4, 5) for s in (0, 1)}
    assert len({result.key for result in results}) == len(results), "a copy is an experiment of its own"


def test_what_diverges_is_replaced_too(make_sweep, execution):
    class Diverging(Simulated):
        def _after(self, run, step):
            return Outcome.DIVERGED if run.trial < 3 and step == 1 else super()._after(run, step)

    with Study.open(bred(make_sweep), execution) as study:
        Diverging(study, by_rate, lanes=8, steps=6).work()
        found = outcomes(study)
        copies = {n: t.origin for n, t in study._session.state.trials.items() if t.origin is not None}
    assert [n for n, (_, step) in copies.items() if step == 2] == [8, 9, 10], "three, though a quarter is two"
    assert sum(outcome == "COMPLETED" for outcome in found.values()) == 8, "the population is whole again"


def test_a_parent_waits_until_its_copies_have_begun(make_sweep, execution):
    with Study.open(bred(make_sweep, trials=2, quantile=0.5), execution) as study:
        worker = Simulated(study, by_rate)
        pair = [study.next_run(company=n > 0) for n in range(2)]
        for run in pair:
            worker.trained[run.id] = 2
            study.report(run, EvalMetrics(step=2, loss=by_rate(run.spec, 0, 2), tokens=1, accuracy=0, seconds=0.1))
            study.pause(run, worker._result(run, Outcome.PRUNED))
        copy = study.next_run()
        assert copy.id == "t0002-s0" and copy.parent_step == 2 and copy.parent in [run.id for run in pair]
        assert study.next_run(company=True) is None, "its parent stays where it is"
        study.saved(copy, 2)
        assert study.next_run(company=True).id == copy.parent


def test_the_same_command_goes_on_and_another_population_is_refused(make_sweep, execution):
    trained = {}
    for most in (2, 3, None):
        with Study.open(bred(make_sweep), execution) as study:
            Simulated(study, by_rate, steps=8, trained=trained).work(most)
            results = study.results()
    assert sum(result.outcome is Outcome.COMPLETED for result in results) == 8
    with pytest.raises(SweepFolderError, match="stays as large as it was begun"):
        Study.open(bred(make_sweep, trials=9), execution)
    (Path(execution.folder) / "study.log").unlink()
    with pytest.raises(SweepFolderError, match="log is gone"):
        Study.open(bred(make_sweep), execution)


def test_a_generation_is_one_event(make_sweep, execution):
    """A worker that dies while it writes leaves a whole generation or none."""
    with Study.open(bred(make_sweep), execution) as study:
        Simulated(study, by_rate, lanes=8, steps=3).work()
    lines = [json.loads(line) for line in (Path(execution.folder) / "study.log").read_text().splitlines()]
    (event,) = [line for line in lines if line["op"] == "breed"]
    assert sorted(event["members"]) == list(range(8)) and [copy["trial"] for copy in event["copies"]] == [8, 9]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {"interval": 0}}, "interval"),
        ({"options": {"quantile": 0.7}}, "quantile"),
        ({"options": {"resample": 2}}, "resample"),
        ({"options": {"factors": [1.0]}}, "factors"),
        ({"options": {"quantil": 0.5}}, "no option 'quantil'"),
        ({"space": {"method.r": [2, 8]}}, "nothing else to perturb"),
        ({"space": {"optimizer.lr": [0.1, 0.2], "budget.steps": [5, 9]}}, "train in step"),
        ({"trials": 1}, "nobody to copy"),
        ({"max_repeats": 3}, "racing"),
    ],
)
def test_populations_of_no_use_are_refused(make_sweep, execution, change, said):
    change = dict(change)
    pruner = Strategy("population", pairs({"interval": 2} | change.pop("options", {})))
    fields = {"space": SPACE, "sampler": "random", "trials": 8, "pruner": pruner} | change
    with pytest.raises(SpecError, match=said):
        Study.open(make_sweep(**fields), execution)


RICH = SPACE | {
    "method.roles": {"masks": "all"},
    "method.dropout": {"float": {"low": 0.0, "high": 0.3, "step": 0.1}},
    "optimizer.weight_decay": {"float": {"low": 0.0, "high": 0.1}},
    "schedule.warmup_steps": {"int": {"low": 1, "high": 13, "step": 4}},
    "optimizer.max_grad_norm": {"int": {"low": 1, "high": 64, "log": True}},
}


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), resample=st.floats(0, 1))
def test_a_perturbed_point_lies_in_the_space_and_can_go_on(seed, resample):
    space, rng = Space.from_tree(RICH), random.Random(seed)
    population = Population(2, 0.25, resample, (0.8, 1.25), 0)
    point = space.walk(BASE, lambda path, domain: rng.choice(listed(domain) or ends(domain)))
    for _ in range(3):
        near = population.perturbed(space, BASE, point, rng)
        assert space.take(near, BASE, "") == near and space.open_paths(near, BASE) == []
        assert goes_on(BASE.at(point), BASE.at(near))
        assert all(near[path] == value for path, value in point.items() if not perturbable(path))
        point = near


def test_what_a_copy_keeps():
    assert not goes_on(BASE, BASE.at({"method.r": 3})) and not goes_on(BASE, BASE.at({"data.train_size": 3}))
    assert goes_on(BASE, BASE.at({"optimizer.lr": 3.0, "method.dropout": 0.5, "schedule.name": "constant"}))
    assert another_optimizer(BASE, BASE.at({"optimizer.name": "sgd"}))
    assert not another_optimizer(BASE, BASE.at({"optimizer.lr": 3.0}))
