"""Composing sweeps: shipped ones, a user's own file, the resolved file, and every bad input that config can see."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lora_lab.config import Composed, compose_run, compose_sweep, conf_folder, sweep_names, sweeps_folder
from lora_lab.config.places import options
from lora_lab.config.sweepfile import without_password
from lora_lab.errors import BadInput, SpaceError, SpecError
from lora_lab.spec import (
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    ScheduleSpec,
    Strategy,
)

TINY = "model=tiny"
OWN = """
defaults: [{override /model: tiny}]
sweep:
  space:
    method.r: {choices: [1, 2]}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "own.yaml") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def refused(*arguments: Any, kind: type[BadInput] = BadInput) -> str:
    """The message of the refusal: bad input, exit code 2, one line, nothing of Hydra in it."""
    with pytest.raises(kind) as refusal:
        compose_sweep(*arguments)
    message = str(refusal.value)
    assert refusal.value.exit_code == 2
    assert "\n" not in message
    for word in ("hydra.cc", "full_key", "object_type", "omegaconf", "Could not override", "lora_lab_"):
        assert word not in message
    return message


# -- what composes ---------------------------------------------------------------------------------------


def test_rank_alpha_is_the_sweep_of_the_readme() -> None:
    composed = compose_sweep("rank_alpha", [])
    sweep = composed.sweep
    assert sweep.name == "rank_alpha"
    assert sweep.base.model.source == "wheel"
    assert sweep.base.data.name == "taskmix"
    assert sweep.sampler == Strategy("grid")
    assert sweep.pruner == Strategy("none")
    assert sweep.repeats == 2
    assert sweep.planned_trials == 9
    assert sweep.space.to_tree() == {
        "method.r": {"choices": [2, 8, 32]},
        "method.alpha_over_r": {"choices": [0.5, 1, 2]},
    }
    assert composed.execution.folder == str(Path("runs", "rank_alpha"))
    assert composed.execution.tracking.name == "mlflow"
    assert composed.execution.max_lanes is None
    assert composed.execution.device == "auto"


def test_what_a_user_typically_changes() -> None:
    composed = compose_sweep(
        "rank_alpha",
        [
            TINY,
            "data.train_size=64",
            "sweep.repeats=1",
            "sweep.space={method.r: {choices: [4, 16]}}",
            "sampler=random",
            "sweep.trials=3",
            "pack.max_lanes=4",
            "tracking=none",
        ],
    )
    assert composed.sweep.base.model.name == "tiny"
    assert composed.sweep.base.data.train_size == 64
    assert composed.sweep.space.to_tree() == {"method.r": {"choices": [4, 16]}}
    assert composed.sweep.sampler.name == "random"
    assert (composed.sweep.trials, composed.sweep.repeats) == (3, 1)
    assert composed.execution.max_lanes == 4
    assert composed.execution.tracking.name == "none"


@pytest.mark.parametrize("name", sweep_names())
def test_every_shipped_sweep_composes(name: str) -> None:
    sweep = compose_sweep(name, []).sweep
    assert sweep.planned_trials * sweep.repeats > 1
    assert (sweeps_folder() / f"{name}.yaml").is_file()


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("model", "data", "optimizer", "schedule") for o in options(g)]
)
def test_every_option_of_a_run_composes(group: str, option: str) -> None:
    needs = {
        "callable": "data.call._target_=mine.rows",
        "mixture": "data.sources={sums: {name: taskmix}}",
        "taskmix": "data.diversity=2",
    }
    more = needs.get(option, f"{group}.path=./here") if group == "data" or option == "hf" else f"{group}={option}"
    spec = compose_run([f"{group}={option}", more])
    assert getattr(spec, group).name == ("./here" if (group, option) == ("model", "hf") else option)


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("sampler", "pruner", "tracking", "launcher") for o in options(g)]
)
def test_every_option_of_a_sweep_composes(group: str, option: str) -> None:
    masks = "sweep.space={method.roles: {masks: all}}"
    composed = compose_sweep("rank_alpha", [f"{group}={option}", "sweep.trials=3", masks])
    said = {
        "sampler": composed.sweep.sampler,
        "pruner": composed.sweep.pruner,
        "tracking": composed.execution.tracking,
        "launcher": composed.execution.launcher,
    }
    assert said[group].name == option


def test_the_defaults_of_conf_are_those_of_the_specs() -> None:
    spec = compose_run([TINY])
    assert spec == RunSpec(
        model=spec.model,
        data=DataSpec(),
        method=MethodSpec(),
        optimizer=OptimizerSpec(),
        schedule=ScheduleSpec(),
        budget=BudgetSpec(),
        evaluation=EvaluationSpec(),
        seed=0,
    )


def test_llama2_7b_has_its_shape_without_a_hub() -> None:
    config = dict(compose_run(["model=llama2_7b"]).model.config)
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (4096, 32, 32000)


def test_free_mappings_take_names_from_the_command_line() -> None:
    spec = compose_run([TINY, "model.config.hidden_size=16", "model.config.head_dim=4", "data.columns.output=response"])
    assert dict(spec.model.config)["hidden_size"] == 16
    assert dict(spec.model.config)["head_dim"] == 4
    assert dict(spec.data.columns) == {"output": "response"}
    assert "head_dim" not in dict(compose_run([TINY, "model.config.head_dim=4", "~model.config.head_dim"]).model.config)


@pytest.mark.parametrize("said", ["[value,query]", "query+value", "value+query"])
def test_a_mask_has_several_spellings(said: str) -> None:
    assert compose_run([TINY, f"method.roles={said}"]).method.roles == ("query", "value")


def test_all_and_none_are_masks() -> None:
    assert len(compose_run([TINY, "method.roles=all"]).method.roles) == 6
    assert compose_run([TINY, "method.roles=none"]).method.roles == ()
    assert compose_run([TINY, "method.roles=[]"]).method.roles == ()


def test_paths_with_odd_characters_are_texts() -> None:
    for path in ("./a b.jsonl", "runs/lr=0.1/x.jsonl", "/a/b-c_d@e%f.jsonl", "../ü.jsonl"):
        assert compose_run([TINY, "data=alpaca", f"data.path={path}"]).data.path == path
    assert compose_run([TINY, "data=alpaca", "data.path='a,b [1].jsonl'"]).data.path == "a,b [1].jsonl"


# -- a user's own file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own.yaml", "deep/er/own.yml", "with space & =,/own.yaml"])
def test_a_users_file_works_in_any_folder(name: str) -> None:
    write(OWN, name)
    for given in (name, str(Path(name).resolve()), f"./{name}"):
        composed = compose_sweep(given, [])
        assert composed.sweep.name == "own"
        assert composed.sweep.base.model.name == "tiny"
        assert composed.sweep.planned_trials == 2
        assert composed.execution.folder == str(Path("runs", "own"))


def test_name_and_folder_can_be_said() -> None:
    write(OWN)
    composed = compose_sweep("own.yaml", ["sweep.name=other", "sweep.dir=/somewhere/else"])
    assert composed.sweep.name == "other"
    assert composed.execution.folder == "/somewhere/else"
    assert compose_sweep("own.yaml", ["sweep.name=2024"]).sweep.name == "2024"
    home = compose_sweep("own.yaml", ["sweep.dir=~/lab"]).execution.folder
    assert home == str(Path.home() / "lab")


@pytest.mark.parametrize(
    "text",
    [
        "defaults: [{override /sampler: random}]\nsweep: {trials: 3}",
        "defaults: [{sampler: random}]\nsweep: {trials: 3}",
        "defaults: [_self_, {/sampler: random}]\nsweep: {trials: 3}",
        "sweep: {trials: 3, sampler: random}",
        "sweep: {trials: 3, sampler: {name: random}}",
        "sampler: {name: random}\nsweep: {trials: 3}",
    ],
)
def test_a_strategy_is_chosen_where_one_likes(text: str) -> None:
    write(text)
    assert compose_sweep("own.yaml", [TINY]).sweep.sampler == Strategy("random")
    assert compose_sweep("own.yaml", [TINY, "sampler=tpe"]).sweep.sampler.name == "tpe"
    assert compose_sweep("own.yaml", [TINY, "sweep.sampler=tpe"]).sweep.sampler.name == "tpe"


def test_options_of_a_strategy() -> None:
    write("sweep: {trials: 3, sampler: {name: tpe, options: {multivariate: true}}}")
    sampler = compose_sweep("own.yaml", [TINY, "sampler.options.n_startup_trials=2"]).sweep.sampler
    assert dict(sampler.options) == {"multivariate": True, "n_startup_trials": 2}


def test_the_command_line_wins_over_the_file_and_the_file_over_conf() -> None:
    write("defaults: [{override /model: tiny}]\nmodel: {dtype: float64}\ndata: {max_length: 64, seed: 1}")
    base = compose_sweep("own.yaml", ["data.seed=2"]).sweep.base
    assert (base.model.dtype, base.model.name) == ("float64", "tiny")
    assert (base.data.max_length, base.data.seed) == (64, 2)


def test_a_section_that_names_an_option_is_that_option() -> None:
    write("optimizer: {name: sgd, lr: 0.5}")
    optimizer = compose_sweep("own.yaml", [TINY]).sweep.base.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", 0.5, 0.9)


def test_a_model_of_ones_own_takes_nothing_from_the_default_one() -> None:
    write("model: {name: mine, path: ./mine}")
    assert compose_sweep("own.yaml", []).sweep.base.model == ModelSpec(name="mine", path="./mine")


def test_a_group_chosen_on_the_command_line_replaces_a_section_that_names_itself() -> None:
    write("model: {name: mine, path: ./mine, dtype: float64}\ndata: {max_length: 64}")
    base = compose_sweep("own.yaml", [TINY, "data=text", "data.path=a.txt"]).sweep.base
    assert base.model == compose_run([TINY]).model
    assert base.data.max_length == 64


def test_options_beside_the_file_can_be_chosen() -> None:
    write("name: mine\nsource: pretrained\npath: ./mine\n", "lab/model/mine.yaml")
    write("defaults: [{override /model: mine}]", "lab/own.yaml")
    assert compose_sweep("lab/own.yaml", []).sweep.base.model.path == "./mine"
    assert compose_sweep("lab/own.yaml", [TINY]).sweep.base.model.name == "tiny"


def test_options_of_another_folder_can_be_chosen() -> None:
    write("name: mine\nsource: pretrained\npath: ./mine\n", "lab/model/mine.yaml")
    searchpath = f"hydra.searchpath=['file://{Path('lab').resolve()}']"
    assert compose_sweep("rank_alpha", [searchpath, "model=mine"]).sweep.base.model.path == "./mine"


def test_interpolations_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_DATA", "/data")
    write(OWN + "data: {name: alpaca, path: '${oc.env:LAB_DATA}/a.jsonl'}\nseed: ${data.seed}\n")
    composed = compose_sweep("own.yaml", ["data.seed=7"])
    assert composed.sweep.base.data.path == "/data/a.jsonl"
    assert composed.sweep.base.seed == 7
    assert "${" not in composed.yaml


def test_a_range_a_mask_list_and_an_odd_value_in_a_space() -> None:
    write(
        """
        sweep:
          sampler: tpe
          trials: 5
          space:
            method.r: {int: [1, 64]}
            optimizer.lr: {float: {low: 1e-5, high: 1e-2, log: true}}
            method.roles: {masks: [query+value, all, [mlp]]}
            budget: {batch_size: [4, 8]}
        """
    )
    space = compose_sweep("own.yaml", [TINY]).sweep.space
    assert space.paths == ("method.r", "optimizer.lr", "method.roles", "budget.batch_size")
    assert space.to_tree()["optimizer.lr"] == {"float": {"low": 1e-5, "high": 1e-2, "log": True}}


# -- the resolved file -----------------------------------------------------------------------------------

VARIANTS: list[list[str]] = [
    [],
    [TINY],
    [TINY, "~model.config.vocab_size", "model.config.x=[1, {a: null}]"],
    ["model=llama2_7b", "model.config={}"],
    ["model=hf", "model.path=./x", "model.roles={query: [q_proj]}"],
    [TINY, "data=alpaca", "data.path='a,b.jsonl'", "data.columns={output: y}", "data.tasks=[]"],
    [TINY, "data.tasks=[dates,'1e-3','null','yes']", "seed=5", "sweep.seed=3"],
    [TINY, "sampler=tpe", "sampler.options.multivariate=true", "sweep.trials=4", "pruner=median"],
    [
        TINY,
        "method.alpha=3",
        "sweep.space={method.roles: {masks: all}, optimizer.lr: {float: {low: 1e-7, high: 1.0, step: 0.1}}}",
    ],
    [TINY, "sweep.space.method.alpha_over_r={choices: [0.1, 1e-7, 3, 0.30000000000000004]}"],
    [TINY, "~sweep.space", "sweep.name='odd: name #1'", "sweep.dir=some/where", "optimizer=sgd", "method.roles=none"],
    [TINY, "tracking=none", "device=cpu", "pack.max_lanes=3", "sweep.storage=sqlite:///a.db"],
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=range(len(VARIANTS)))
def test_the_resolved_file_makes_the_same_sweep(overrides: list[str]) -> None:
    first = compose_sweep("rank_alpha", overrides)
    again = compose_sweep(write(first.yaml, "runs/x/config.yaml"), [])
    assert again.sweep == first.sweep
    assert again.sweep.key == first.sweep.key
    assert again.execution == first.execution
    assert again.yaml == first.yaml


def test_overrides_change_the_resolved_file_like_any_other() -> None:
    write(compose_sweep("rank_alpha", ["model=llama2_7b", "optimizer.lr=0.5", "sampler=tpe", "sweep.trials=2"]).yaml)
    composed = compose_sweep("own.yaml", [TINY, "sampler=grid", "optimizer.lr=0.25", "~sweep.space.method.r"])
    assert composed.sweep.base.model == compose_run([TINY]).model
    assert composed.sweep.sampler == Strategy("grid")
    assert composed.sweep.base.optimizer.lr == 0.25
    assert composed.sweep.space.paths == ("method.alpha_over_r",)
    assert composed.sweep.name == "rank_alpha"


def test_the_resolved_file_says_everything() -> None:
    tree = yaml.safe_load(compose_sweep("rank_alpha", [TINY, "method.roles=value+query"]).yaml)
    assert tree["optimizer"]["beta2"] is None  # the optimizer's own
    assert tree["method"]["rslora"] is False
    assert tree["method"]["roles"] == ["query", "value"]
    assert tree["sweep"]["name"] == "rank_alpha"
    assert tree["sampler"] == {"name": "grid", "options": {}}


def test_no_password_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_STORE", "postgresql+psycopg://me:s3cret@db/lab")
    literal = [TINY, "sweep.storage=postgresql+psycopg://me:s3cret@db/lab", "tracking.uri=https://me:s3cret@ml.example"]
    composed = compose_sweep("rank_alpha", literal)
    assert composed.execution.storage == "postgresql+psycopg://me:s3cret@db/lab"
    assert "s3cret" not in composed.yaml
    assert "postgresql+psycopg://me@db/lab" in composed.yaml
    named = compose_sweep("rank_alpha", [TINY, "sweep.storage=${oc.env:LAB_STORE}"])
    assert named.execution.storage == "postgresql+psycopg://me:s3cret@db/lab"
    assert "s3cret" not in named.yaml
    assert compose_sweep(write(named.yaml), []).execution == named.execution


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        (None, None),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("sqlite:////abs/a.db", "sqlite:////abs/a.db"),
        ("postgresql://u:p@h:5432/d?sslmode=require", "postgresql://u@h:5432/d?sslmode=require"),
        ("postgresql://h/d?user=u&password=p&sslmode=require", "postgresql://h/d?user=u&sslmode=require"),
        ("http://h:5000", "http://h:5000"),
    ],
)
def test_urls_without_their_passwords(url: str | None, stored: str | None) -> None:
    assert without_password(url) == stored


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rank_alfa", "no sweep 'rank_alfa'; did you mean 'rank_alpha'? Sweeps by name: "),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
        ("method.r=4", "expected a sweep before the override 'method.r=4'"),
        (".", "is a folder, not a sweep"),
    ],
)
def test_an_unknown_sweep(name: str, message: str) -> None:
    assert message in refused(name, [])


def test_a_file_named_without_its_suffix_is_offered() -> None:
    write(OWN, "mine.yaml")
    assert "did you mean the file mine.yaml?" in refused("mine", [])
    write(OWN, "runs/x/config.yaml")
    assert "name a file in it, e.g. runs/x/config.yaml" in refused("runs/x", [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=tini", "model: no option 'tini'; did you mean 'tiny'? Options: hf, llama2_7b, smollm2_135m, tiny."),
        ("model=./mine", "model=hf model.path=./mine"),
        ("data=train.jsonl", "data=alpaca data.path=train.jsonl"),
        ("sweep.sampler=rando", "sampler: no option 'rando'; did you mean 'random'?"),
        ("sampler.name=rando", "sampler: no option 'rando'; did you mean 'random'?"),
        ("model=hf", "model.path has no value; give one with model.path=…"),
        ("method.r=abc", "method.r: expected a whole number, got 'abc'."),
        ("method.r=4.5", "method.r: expected a whole number, got 4.5."),
        ("method.r=null", "method.r: expected a whole number, got null."),
        ("method.r=true", "method.r: expected a whole number, got true."),
        ("optimizer.lr=fast", "optimizer.lr: expected a number, got 'fast'."),
        ("budget.steps=x", "budget.steps: expected a whole number, or null, got 'x'."),
        ("data.mask_prompt=maybe", "data.mask_prompt: expected true or false, got 'maybe'."),
        ("data.tasks=dates", "data.tasks: expected a list, as in data.tasks=[a, b], got 'dates'."),
        ("method.layers=[a]", "method.layers[0]: expected a whole number, got 'a'."),
        ("method.roles=[query,valu]", "method.roles: 'valu' is not a role; did you mean 'value'?"),
        ("method.roles=3", "method.roles: a list of roles, or query+value, all, none; got 3."),
        ("optimizer.name=adamm", "optimizer.name: unknown value 'adamm'; did you mean 'adamw'?"),
        ("device=gpu", "device: must be auto, cpu, cuda or cuda:N, got 'gpu'."),
        ("pack.max_lanes=many", "pack.max_lanes: must be a whole number, or auto, got 'many'."),
        ("pack.max_lanes=true", "pack.max_lanes: must be a whole number, or auto, got True."),
        ("pack.max_lanes=0", "pack.max_lanes: must be 1 or more"),
        ("sweep.name=a/b", "sweep.name: 'a/b' cannot name a folder"),
        ("sweep.name=''", "sweep.name: '' cannot name a folder"),
        ("sweep.name=..", "cannot name a folder"),
        ("model.path=${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
        ("model.path=${no.such.key}", "model.path: Interpolation key 'no.such.key' not found."),
        ("hydra.searchpath=['file:///no/such/folder']", "path=/no/such/folder is not available"),
        ("hydra/launcher=slurm", "hydra/launcher: no option 'slurm'."),
        ("hydra.verbos=true", "hydra.verbos: Key 'verbos' not in 'HydraConf'."),
        ("tracking.name=wandb", "tracking.name: unknown value 'wandb'"),
        ("sweep.objective.metric=loss", "sweep.objective.metric: 'loss' is not one of"),
        ("data=alpaca", "data.path: data.name=alpaca needs one"),
    ],
)
def test_a_bad_override_is_refused(override: str, message: str) -> None:
    assert message in refused("rank_alpha", [TINY, override])


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("method.r=0", SpecError, "method.r: must be 1 or more, got 0."),
        ("method.r=-3", SpecError, "method.r: must be 1 or more, got -3."),
        ("method.alpha=16", SpecError, "method.alpha=16 and method.alpha_over_r=0.5 say the same thing twice"),
        ("sweep.space.method.q=[1]", SpaceError, "no config path 'method.q'; did you mean 'method.r'?"),
        ("sweep.space.method.r=[]", SpaceError, "choices needs a list with at least one value"),
        ("sweep.space.method.r.int=[9,1]", SpaceError, "low=9 is above high=1; swap them."),
        ("sweep.space.optimizer.lr={float: {low: 0, high: 1, log: true}}", SpaceError, "cannot start at or below zero"),
        (
            "sweep.space.method.r={choises: [1]}",
            SpaceError,
            "unknown kind of domain 'choises'; did you mean 'choices'?",
        ),
        ("sweep.space.method.r=[0,4]", SpecError, "method.r: must be 1 or more, got 0."),
        ("sweep.space.method.r=[a]", SpecError, "method.r: expected int, got 'a'."),
        ("sampler=random", SpecError, "sweep.trials: sampler=random never ends by itself"),
        ("sweep.repeats=0", SpecError, "sweep.repeats: must be 1 or more"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(override: str, kind: type[BadInput], message: str) -> None:
    assert message in refused("rank_alpha", [TINY, override], kind=kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; a sweep has at least"),
        ("- a\n- b\n", "a sweep file is a mapping of settings, not list"),
        ("sweep: [", "line 1: not valid YAML"),
        ("seed: 1\nsweep: {a: 1}}\n", "line 2: not valid YAML"),
        ("seed: 1\nseed: 2\n", "not valid YAML"),
        ("methd: {r: 3}", "own.yaml: no config key 'methd'; did you mean 'method'?"),
        ("method: {rr: 3}", "own.yaml: no config key 'method.rr'; did you mean 'method.r'?"),
        ("method: {r: x}", "own.yaml: method.r: expected a whole number, got 'x'."),
        ("method: 3", "own.yaml: method is a group of settings and cannot be 3."),
        ("sweep: {space: [1]}", "own.yaml: sweep.space is a group of settings and cannot be [1]."),
        ("hydra: {verbose: true}", "own.yaml: no config key 'hydra'"),
        ("defaults: 3", "own.yaml: defaults is a list"),
        ("defaults: [{override /modl: tiny}]", "own.yaml: defaults: no config group 'modl'; did you mean 'model'?"),
        ("defaults: [{override /model: tini}]", "model: no option 'tini'; did you mean 'tiny'?"),
        ("defaults: [{override /model: [tiny]}]", "model takes the name of an option, not ['tiny']"),
        ("defaults: [rank_alpha]", "write {override /GROUP: OPTION}"),
        ("sweep: {sampler: rando}", "sampler has no option 'rando'; did you mean 'random'?"),
        ("sampler: {name: grid}\nsweep: {sampler: grid}", "the sampler is chosen twice"),
        ("defaults: [{override /sampler: grid}]\nsweep: {sampler: tpe}", "the sampler is chosen twice"),
        ("optimizer: {name: adamm}", "optimizer has no option 'adamm'; did you mean 'adamw'?"),
        ("sweep: {space: {method.q: [1]}}", "no config path 'method.q'; did you mean 'method.r'?"),
        ("seed: ${nowhere}", "seed: Interpolation key 'nowhere' not found."),
        ("version: '3'\nservices: {}\n", "own.yaml: no config key 'version'"),
    ],
)
def test_a_bad_file_is_refused(text: str, message: str) -> None:
    assert message in refused(write(text), [TINY] if "/model" not in text else [])


def test_files_that_cannot_be_read() -> None:
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "binary.yaml: not" in refused("binary.yaml", [])
    write(OWN)
    if os.geteuid():
        Path("own.yaml").chmod(0)
        assert "own.yaml: cannot be read (Permission denied)" in refused("own.yaml", [])


def test_a_bad_option_file_of_ones_own_is_named() -> None:
    write("name: mine\npth: ./mine\n", "model/mine.yaml")
    message = refused(write("defaults: [{override /model: mine}]"), [])
    assert "model/mine" in message
    assert "no config key 'model.pth'; did you mean 'model.path'?" in message


def test_a_refusal_leaves_nothing_behind() -> None:
    refused("rank_alpha", [TINY, "model=tini"])
    assert compose_sweep("rank_alpha", [TINY]).sweep.base.model.name == "tiny"
    assert list(Path.cwd().iterdir()) == []


def test_composing_the_same_thing_twice_gives_the_same() -> None:
    def make(*overrides: str) -> Composed:
        return compose_sweep("rank_alpha", [TINY, *overrides])

    overrides = ["data.seed=3", "method.dropout=0.1", "sweep.space.method.r=[1,2]", "sweep.repeats=4"]
    assert make(*overrides) == make(*reversed(overrides))


def test_a_program_that_uses_hydra_itself_is_left_alone() -> None:
    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        assert compose_sweep("rank_alpha", [TINY]).sweep.name == "rank_alpha"
        assert GlobalHydra.instance().hydra is mine


def test_names_that_lead_out_of_conf_are_not_options() -> None:
    assert "no option '../config'" in refused("rank_alpha", ["model=../config"])
    assert conf_folder().name == "conf"


def test_no_file_allows_itself_to_run_code() -> None:
    assert "sweep.allow_code=true on the command line" in refused(write(f"{OWN}  allow_code: true\n"))
    allowed = compose_sweep("rank_alpha", [TINY, "sweep.allow_code=true"])
    assert allowed.execution.allow_code and "allow_code: false" in allowed.yaml, "whoever runs it again says so again"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sweep.repeats={min: 1, most: 5}", "min: 1, max: 5"),
        ("sweep.repeats=often", "a whole number, or"),
        ("sweep.objectives=eval_loss", "a list such as"),
        ("sweep.objectives=[eval_loss downwards, seconds]", "downwards"),
        ("sweep.constraints=['method.r <=']", "is not an expression"),
        ("sweep.enqueue=[{method.rr: 3}]", "did you mean 'method.r'"),
        ("sweep.stop.trial=3", "did you mean 'sweep.stop.trials'"),
        ("sweep.stop.seconds=-1", "positive"),
        ("evaluation.every_steps=null", "evaluation.every_steps=N"),
    ],
)
def test_settings_of_a_search_that_cannot_be_are_refused(override: str, said: str) -> None:
    assert said in refused("rank_alpha", [TINY, "pruner=median", override])


def test_a_search_is_composed_as_it_is_said() -> None:
    sweep = compose_sweep(
        "rank_alpha",
        [
            TINY,
            "sweep.repeats={min: 2, max: 4}",
            "sweep.enqueue=[{method: {r: 8}}, {method.r: 2}]",
            "sweep.space.optimizer.lr.float=[1e-4,1e-2]",
            "sweep.space.optimizer.lr.when='method.r > 4'",
            "sweep.space.optimizer.lr.float.log=true",
            "sampler=random",
            "sweep.trials=5",
            "sweep.stop.no_improvement=3",
        ],
    ).sweep
    assert (sweep.repeats, sweep.max_repeats, sweep.stop.no_improvement) == (2, 4, 3)
    assert [dict(point) for point in sweep.enqueue] == [{"method.r": 8}, {"method.r": 2}]
    assert sweep.space.to_tree()["optimizer.lr"] == {
        "float": {"low": 1e-4, "high": 1e-2, "log": True},
        "when": "method.r > 4",
    }
