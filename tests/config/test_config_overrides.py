"""Overrides of the command line: what they may say, and how they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from lora_lab.config.overrides import edit_space, flat_space, parse, read_overrides
from lora_lab.config.schema import RUN, SWEEP
from lora_lab.errors import ConfigError

SPACE = {"method.r": {"choices": [2, 8]}, "optimizer.lr": {"float": [1e-5, 1e-3]}}


@pytest.mark.parametrize(
    ("line", "hydra"),
    [
        ("method.r=4", "method.r=4"),
        ("+method.r=4", "method.r=4"),
        ("model=tiny", "model=tiny"),
        ("+model=tiny", "model=tiny"),
        ("data.columns.output=response", "++data.columns.output=response"),
        ("data.columns={output: response}", "++data.columns={output: response}"),
        ("~data.columns.output", "~data.columns.output"),
        ("sampler.options.multivariate=true", "++sampler.options.multivariate=true"),
        ("sweep.sampler=tpe", "sampler=tpe"),
        ("sweep.pruner=median", "pruner=median"),
        ("sweep.sampler.options.multivariate=true", "++sampler.options.multivariate=true"),
        ("hydra.searchpath=[file:///a]", "hydra.searchpath=[file:///a]"),
        ("model.path=./my model", "model.path=./my model"),
        ("budget={steps: 3}", "budget={steps: 3}"),
    ],
)
def test_overrides_reach_hydra_in_its_spelling(line: str, hydra: str) -> None:
    assert read_overrides(SWEEP, [line]).hydra == (hydra,)


def test_group_choices_are_known_and_the_last_one_counts() -> None:
    said = read_overrides(SWEEP, ["model=tiny", "sampler=random", "sweep.sampler=tpe", "data.seed=3"])
    assert said.groups == {"model": "tiny", "sampler": "tpe"}


def test_edits_of_the_space_are_kept_from_hydra() -> None:
    said = read_overrides(SWEEP, ["sweep.space.method.r=[4]", "seed=1"])
    assert said.hydra == ("seed=1",)
    assert [edit.key_or_group for edit in said.space] == ["sweep.space.method.r"]


@pytest.mark.parametrize(
    ("edits", "space"),
    [
        (["sweep.space={method.r: {choices: [4, 16]}}"], {"method.r": {"choices": [4, 16]}}),
        (["sweep.space={method: {r: {choices: [4, 16]}}}"], {"method.r": {"choices": [4, 16]}}),
        (["sweep.space={}"], {}),
        (["sweep.space=null"], {}),
        (["~sweep.space"], {}),
        (["+sweep.space={method.dropout: [0.0, 0.1]}"], SPACE | {"method.dropout": [0.0, 0.1]}),
        (["++sweep.space={method.r: [1]}"], SPACE | {"method.r": [1]}),
        (["sweep.space.method.r=[4,16]"], SPACE | {"method.r": [4, 16]}),
        (["sweep.space.method.r=4,16"], SPACE | {"method.r": [4, 16]}),
        (["sweep.space.method.r.choices=4,16"], SPACE | {"method.r": {"choices": [4, 16]}}),
        (["sweep.space.method.r.choices=[4,16]"], SPACE | {"method.r": {"choices": [4, 16]}}),
        ([r"sweep.space.method\.r.choices=[4,16]"], SPACE | {"method.r": {"choices": [4, 16]}}),
        (["sweep.space.method.r.int=[1,64]"], SPACE | {"method.r": {"int": [1, 64]}}),
        (["sweep.space.method.r={int: [1, 64]}"], SPACE | {"method.r": {"int": [1, 64]}}),
        (["sweep.space.method.roles.masks=all"], SPACE | {"method.roles": {"masks": "all"}}),
        (
            ["sweep.space.optimizer.lr.float.log=true"],
            SPACE | {"optimizer.lr": {"float": {"low": 1e-5, "high": 1e-3, "log": True}}},
        ),
        (
            ["sweep.space.method.r.int.low=1", "sweep.space.method.r.int.high=9"],
            SPACE | {"method.r": {"int": {"low": 1, "high": 9}}},
        ),
        (["~sweep.space.method.r"], {"optimizer.lr": SPACE["optimizer.lr"]}),
        (["sweep.space={}", "sweep.space.seed=[1]"], {"seed": [1]}),
        (["sweep.space.method={r: [1], dropout: [0.0]}"], SPACE | {"method.r": [1], "method.dropout": [0.0]}),
    ],
)
def test_domains_are_replaced_added_and_removed(edits: list[str], space: dict[str, Any]) -> None:
    edited = edit_space(SPACE, read_overrides(SWEEP, edits).space)
    assert edited == space
    assert [path for path in edited if path in SPACE] == [path for path in SPACE if path in edited]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("~sweep.space.method.rr", "the space has no 'method.rr'; did you mean 'method.r'?"),
        ("sweep.space=3", "the space is a mapping"),
        ("sweep.space.method.r.choises=[1]", "no kind of domain 'choises'; did you mean 'choices'?"),
        ("sweep.space.method.r=range(1,9)", "both ends are included"),
        ("sweep.space.method.r=interval(1,9)", "both ends are included"),
    ],
)
def test_edits_that_mean_nothing_are_refused(edit: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        edit_space(SPACE, read_overrides(SWEEP, [edit]).space)
    assert message in str(refusal.value)


def test_a_nested_space_is_flat_space() -> None:
    nested = {"method": {"r": [1], "alpha": {"choices": [2]}}, "optimizer.lr": [0.1], "seed": [1], "methd": {"r": [1]}}
    assert flat_space(nested) == {
        "method.r": [1],
        "method.alpha": {"choices": [2]},
        "optimizer.lr": [0.1],
        "seed": [1],
        "methd": {"r": [1]},
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("method.r", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("", "write it as key=value"),
        ("data.tasks=[a", "cannot be read"),
        ("data.path='a", "cannot be read"),
        ("modle=tiny", "did you mean 'model'?"),
        ("method.rr=4", "did you mean 'method.r'?"),
        ("+method.rr=4", "did you mean 'method.r'?"),
        ("++foo=4", "no config key 'foo'. The config has model, data"),
        ("lr=3", "did you mean 'optimizer.lr'?"),
        ("modl/tiny=1", "no config group 'modl/tiny'"),
        ("modl@model=tiny", "did you mean 'model'?"),
        ("model@base=tiny", "write model=OPTION"),
        ("method=[1]", "takes the name of an option, not [1]"),
        ("model=null", "takes the name of an option"),
        ("budget=3", "budget is a group of settings and cannot be 3"),
        ("budget={stpes: 3}", "did you mean 'budget.steps'?"),
        ("model.config=llama", "model.config is a group of settings"),
        ("~method.r", "set it to another value, or to null"),
        ("~model.config", "set it to another value, or to null"),
        ("~sampler", "choose another option with sampler=OPTION"),
        ("method.r=4,8", "search it with sweep.space.method.r=[4,8], or write [4,8] for a list"),
        ("model=tiny,hf", "gives several values"),
        ("method.r=range(1,4)", "gives several values"),
    ],
)
def test_bad_overrides_are_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_overrides(SWEEP, [line])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_a_run_refuses_what_only_a_sweep_has() -> None:
    for line in ("sweep.repeats=3", "sampler=tpe", "tracking=none", "pack.max_lanes=3", "sweep.space.method.r=[1]"):
        with pytest.raises(ConfigError, match="a setting of sweeps"):
            read_overrides(RUN, [line])


def test_several_values_are_for_multirun() -> None:
    assert read_overrides(RUN, ["method.r=4,8", "model=tiny,hf"], multirun=True).hydra == (
        "method.r=4,8",
        "model=tiny,hf",
    )
    with pytest.raises(ConfigError, match="add --multirun to run each"):
        read_overrides(RUN, ["method.r=4,8"])
    with pytest.raises(ConfigError, match="needs single values"):
        read_overrides(RUN, ["optimizer.lr=interval(0,1)"], multirun=True)


def test_values_are_those_of_hydras_grammar() -> None:
    assert parse("data.tasks=[a, 'b c', 1]").value() == ["a", "b c", 1]
    assert parse("optimizer.lr=1e-3").value() == 1e-3
    assert (
        parse("sweep.storage=postgresql+psycopg://u:p@h:5432/db?x=1").value()
        == "postgresql+psycopg://u:p@h:5432/db?x=1"
    )
