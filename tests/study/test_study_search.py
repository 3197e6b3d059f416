"""What is searched and where a search begins: conditions, constraints, designs, samplers, warm starts."""

from __future__ import annotations

import dataclasses
import sys
from typing import ClassVar

import pytest
from simulated import Simulated, outcomes

from lora_lab.errors import MethodError, SpecError, SweepFolderError
from lora_lab.files import read_json, write_json
from lora_lab.spec import Expression, Objective, Outcome, Strategy, pairs
from lora_lab.study import Study
from lora_lab.study.imports import taken_over

SGD = {"optimizer.name": {"choices": ["adamw", "sgd"]}}
MOMENTUM = SGD | {"optimizer.momentum": {"float": [0.1, 0.9], "when": {"optimizer.name": "sgd"}}}
NUMBERS = {
    "optimizer.lr": {"float": {"low": 1e-5, "high": 1e-2, "log": True}},
    "method.r": {"int": {"low": 2, "high": 64, "log": True}},
    "method.roles": {"masks": "all"},
}


def points(study):
    return [dict(result.point) for result in study.results()]


@pytest.mark.parametrize("name", ["random", "tpe", "qmc", "gp", "cmaes", "nsga2", "nsga3"])
def test_every_sampler_draws_within_the_space_and_goes_on_after_a_restart(make_sweep, tmp_path, execution, name):
    few = {"gp": {"n_startup_trials": 4}, "nsga2": {"population_size": 4}, "nsga3": {"population_size": 4}}
    options = pairs(few.get(name, {"multivariate": True, "group": True} if name == "tpe" else {}))
    space = NUMBERS | MOMENTUM
    trials = 6 if name == "gp" else 12  # its fits take seconds
    sweep = make_sweep(space, sampler=Strategy(name, options), trials=trials)
    with Study.open(sweep, execution) as study:
        Simulated(study, lanes=3).work()
        whole = points(study)
    assert len(whole) == trials and len({point["optimizer.lr"] for point in whole}) > 4
    for point in whole:
        assert ("optimizer.momentum" in point) == (point["optimizer.name"] == "sgd")
        assert sweep.space.take(point, sweep.base, "here") == point
    assert len({point["optimizer.name"] for point in whole}) == 2
    again = dataclasses.replace(execution, folder=str(tmp_path / "again"))
    for _ in range(2):
        with Study.open(sweep, again) as study:
            Simulated(study, lanes=3).work(most=3)
    with Study.open(sweep, again) as study:
        Simulated(study, lanes=3).work()
        assert len(points(study)) == trials
        if name in ("random", "qmc"):
            assert points(study) == whole


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sampler": Strategy("cmaes"), "space": SGD}, "needs 2 int or float domains"),
        ({"sampler": Strategy("cmaes"), "objectives": (Objective(), Objective("seconds"))}, "choose nsga2"),
        ({"sampler": Strategy("nsga2", pairs({"population_size": 1}))}, "refuses its options"),
        ({"sampler": Strategy("gp", pairs({"n_startup": 1}))}, "did you mean 'n_startup_trials'"),
    ],
)
def test_samplers_refuse_what_they_cannot_do(make_sweep, execution, fields, said):
    with pytest.raises(SpecError, match=said):
        Study.open(make_sweep(**({"space": NUMBERS, "trials": 3} | fields)), execution)


def test_a_sampler_whose_package_is_missing_says_how_to_get_it(make_sweep, execution, monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(SpecError, match=r"pip install cmaes; or choose sampler=tpe"):
        Study.open(make_sweep(NUMBERS, sampler="cmaes", trials=3), execution)


class TestTargets:
    def target(self, **options):
        return Strategy("target", pairs(options))

    def test_any_sampler_and_pruner_of_optuna_by_its_name(self, make_sweep, execution):
        partial = self.target(
            _target_="optuna.samplers.PartialFixedSampler",
            fixed_params={"method.r": 8},
            base_sampler={"_target_": "optuna.samplers.RandomSampler"},
        )
        pruner = self.target(_target_="optuna.pruners.ThresholdPruner", upper=1.2)
        space = {path: NUMBERS[path] for path in ("optimizer.lr", "method.r")}
        sweep = make_sweep(space, sampler=partial, pruner=pruner, trials=5)
        with Study.open(sweep, execution) as study:
            Simulated(study).work()
            assert {point["method.r"] for point in points(study)} == {8}
            assert len({point["optimizer.lr"] for point in points(study)}) == 5
            assert set(outcomes(study).values()) == {"PRUNED"}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"_target_": "os.system"}, "add sweep.allow_code=true"),
            ({"_target_": "subprocess.Popen", "args": "true"}, "add sweep.allow_code=true"),
            ({"_target_": "optuna.create_study"}, "no BaseSampler"),
            ({"_target_": "optuna.pruners.MedianPruner"}, "no BaseSampler"),
            ({"_target_": "optuna.samplers.NoSampler"}, "has no NoSampler"),
            ({"_target_": "torch.hub.load"}, "no BaseSampler"),
            ({"_target_": "optuna.samplers.RandomSampler", "sead": 1}, "refuses its options"),
            ({}, "needs sampler.options._target_"),
        ],
    )
    def test_a_sweep_from_a_stranger_runs_no_code(self, make_sweep, execution, options, said):
        with pytest.raises(SpecError, match=said):
            Study.open(make_sweep(NUMBERS, sampler=self.target(**options), trials=3), execution)

    def test_code_of_ones_own_when_it_is_allowed(self, make_sweep, execution, tmp_path, monkeypatch):
        (tmp_path / "my_samplers.py").write_text(
            "from optuna.samplers import RandomSampler\nclass Mine(RandomSampler):\n    pass\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        sweep = make_sweep(NUMBERS, sampler=self.target(_target_="my_samplers.Mine"), trials=3)
        with pytest.raises(SpecError, match="allow_code=true"):
            Study.open(sweep, execution)
        with Study.open(sweep, dataclasses.replace(execution, allow_code=True)) as study:
            assert len(Simulated(study).work().begun) == 3


class TestConstraints:
    LIMIT: ClassVar = (Expression("parameters <= 9000"), Expression("method.r * method.effective_alpha <= 200"))

    def figures(self, spec, name):
        assert name == "parameters"
        if spec.method.r == 32:
            raise MethodError("no such role")
        return 1000 * spec.method.r

    def test_a_point_is_refused_before_it_trains_counted_and_said(self, make_sweep, execution, caplog):
        sweep = make_sweep({"method.r": [2, 4, 8, 16, 32], "method.alpha_over_r": [1, 4]}, constraints=self.LIMIT)
        for _ in range(2):
            with Study.open(sweep, execution, self.figures) as study:
                done = Simulated(study).work()
                counts = study.counts()
                assert counts.refused == 5 and counts.runs == counts.planned_runs == 5
        assert done.begun == []
        assert "parameters <= 9000 does not hold: parameters = 16,000" in caplog.text
        assert "effective_alpha <= 200 does not hold: method.r = 8, method.effective_alpha = 32" in caplog.text
        assert "trial 8 is refused: no such role" in caplog.text

    def test_figures_without_a_planner_are_refused_by_name(self, make_sweep, execution, caplog):
        with Study.open(make_sweep(constraints=self.LIMIT), execution) as study:
            assert study.next_run() is None
        assert "nothing here predicts parameters" in caplog.text

    def test_samplers_go_on_around_refused_points(self, make_sweep, execution):
        sweep = make_sweep(NUMBERS, sampler="tpe", trials=30, constraints=(Expression("method.r <= 16"),))
        with Study.open(sweep, execution) as study:
            Simulated(study).work()
            counts = study.counts()
            assert counts.refused > 0 and counts.runs + counts.refused == 30
            assert all(point["method.r"] <= 16 for point in points(study))


def test_a_design_is_trained_point_by_point(make_sweep, execution):
    sweep = make_sweep({"method.roles": {"masks": "all"}}, sampler="fractional")
    with Study.open(sweep, execution) as study:
        Simulated(study).work()
        assert points(study) == [dict(point) for point in sweep.design.points]


def test_single_roles_are_switched_beside_those_of_the_base(make_sweep, execution):
    space = {"method.roles.mlp": [True, False], "method.roles.query": [True, False]}
    with Study.open(make_sweep(space), execution) as study:
        masks = [study.next_run().spec.method.roles for _ in range(4)]
    assert masks == [("query", "value", "mlp"), ("value", "mlp"), ("query", "value"), ("value",)]


class TestWarmStart:
    def test_enqueued_points_come_first_and_what_they_leave_open_is_drawn(self, make_sweep, tmp_path, execution):
        wanted = ({"method.r": 8}, {"optimizer.name": "sgd", "optimizer.momentum": 0.5, "method.r": 16})
        fields = {"space": NUMBERS | MOMENTUM, "sampler": "tpe", "trials": 4}
        sweep = make_sweep(**fields, enqueue=tuple(map(pairs, wanted)))
        with Study.open(sweep, execution) as study:
            Simulated(study).work()
            found = points(study)
        assert len(found) == 4
        assert all(item in found[0].items() for item in wanted[0].items())
        assert all(item in found[1].items() for item in wanted[1].items())
        elsewhere = dataclasses.replace(execution, folder=str(tmp_path / "without"))
        with Study.open(make_sweep(**fields), elsewhere) as study:
            Simulated(study).work()
            assert points(study)[0]["optimizer.lr"] == found[0]["optimizer.lr"], "drawn as without it"

    def test_a_grid_takes_over_equal_runs_of_another_sweep(self, make_sweep, tmp_path, execution):
        with Study.open(make_sweep({"method.r": [2, 8, 32]}), execution) as study:
            Simulated(study, fields=lambda run: {"adapter": f"runs/{run.id}/adapter"}).work()
        there = dataclasses.replace(execution, folder=str(tmp_path / "other" / "sweep"))
        # Another spelling of one of them: alpha = 2 r is alpha_over_r = 2.
        space = {"method.r": [4, 8], "method.alpha_over_r": [2.0, 3.0]}
        sweep = make_sweep(space, imports=(execution.folder,))
        with Study.open(sweep, there) as study:
            assert Simulated(study).work().begun == ["t0000-s0", "t0001-s0", "t0003-s0"]
            taken = study.results()[2]
        assert taken.run == "t0002-s0" and taken.message == f"same experiment as t0001-s0 of {execution.folder}"
        assert (tmp_path / "other" / "sweep" / taken.adapter).resolve() == tmp_path / "sweep/runs/t0001-s0/adapter"

    def test_a_sampler_begins_with_the_points_taken_over_and_learns_from_them(self, make_sweep, tmp_path, execution):
        space = {path: NUMBERS[path] for path in ("optimizer.lr", "method.r")}
        with Study.open(make_sweep(space, sampler="random", trials=12), execution) as study:
            Simulated(study).work()
            before = points(study)
        there = dataclasses.replace(execution, folder=str(tmp_path / "other"))
        narrow = space | {"method.r": {"int": {"low": 4, "high": 32, "log": True}}}
        sweep = make_sweep(narrow, sampler="tpe", trials=3, imports=(execution.folder,))
        inside = [point for point in before if 4 <= point["method.r"] <= 32]
        for _ in range(2):
            with Study.open(sweep, there) as study:
                Simulated(study).work()
                assert points(study)[: len(inside)] == inside and 0 < len(inside) < 12
                assert study.counts().trials == study.counts().planned_trials == len(inside) + 3
                assert len(Simulated(study).begun) == 0

    def test_a_folder_that_is_no_sweep_is_refused(self, make_sweep, execution, tmp_path):
        with pytest.raises(SweepFolderError, match=r"it has no sweep\.json"):
            Study.open(make_sweep(imports=(str(tmp_path),)), execution)

    def test_what_went_on_from_elsewhere_is_not_taken_for_the_experiment(self, make_sweep, tmp_path, execution):
        """A branch has its parent's beginning, and so a key that is not its settings'."""
        with Study.open(make_sweep({"method.r": [2]}), execution) as study:
            Simulated(study).work()
        path = tmp_path / "sweep" / "runs" / "t0000-s0" / "result.json"
        write_json(path, read_json(path) | {"key": "another"})
        assert taken_over(make_sweep({"method.r": [2]}, imports=(execution.folder,)), tmp_path).results == []

    def test_failures_are_not_taken_over(self, make_sweep, tmp_path, execution, result_of):
        with Study.open(make_sweep({"method.r": [2]}), execution) as study:
            run = study.next_run()
            study.settle(run, result_of(run, Outcome.OUT_OF_MEMORY, message="no"))
        there = dataclasses.replace(execution, folder=str(tmp_path / "other"))
        with Study.open(make_sweep({"method.r": [2]}, imports=(execution.folder,)), there) as study:
            assert study.next_run() is not None
