"""The schema is the specs: nothing is written twice, and nothing drifts."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from omegaconf import OmegaConf

from lora_lab.config.places import conf_folder, options
from lora_lab.config.schema import (
    GROUPS,
    RUN,
    RUN_GROUPS,
    SWEEP,
    check_tree,
    free_above,
    kinds,
    structured,
    unknown_key,
)
from lora_lab.errors import ConfigError
from lora_lab.spec import ModelSpec, Pairs, RunSpec, pairs, to_tree
from lora_lab.spec.optimizer import OPTIMIZERS, SCHEDULES

MODEL = ModelSpec(name="m", path="p")


def test_every_field_of_a_run_is_a_config_key_with_the_same_default() -> None:
    tree = OmegaConf.to_container(OmegaConf.structured(RUN))
    assert isinstance(tree, dict)
    spec = to_tree(RunSpec(model=MODEL))
    assert tree.pop("device") == "auto" and tree.pop("device_memory") is None
    assert tree["model"]["name"] == "???"
    tree["model"] |= {"name": "m", "path": "p"}
    assert tree == spec


def test_a_field_that_a_spec_gains_is_a_config_key_at_once() -> None:
    @dataclasses.dataclass(frozen=True)
    class Thing:
        size: int
        ratio: float | None = None
        names: tuple[str, ...] = ("a",)
        extra: Pairs = dataclasses.field(default_factory=pairs)

    Thing.__annotations__ = typing.get_type_hints(Thing, localns={"Pairs": Pairs})
    config = OmegaConf.structured(structured(Thing, "thing"))
    assert OmegaConf.to_container(config) == {"size": "???", "ratio": None, "names": ["a"], "extra": {}}
    config.extra.anything = [1]
    config.ratio = 1
    assert config.ratio == 1.0
    with pytest.raises(Exception, match="size"):
        config.size = "large"


def test_a_sweep_has_the_keys_of_a_run_and_its_own() -> None:
    assert set(kinds(RUN)) < set(kinds(SWEEP))
    assert {"sweep.space", "sweep.objective.metric", "pack.max_lanes", "tracking.uri", "sampler.options"} <= set(
        kinds(SWEEP)
    )


def test_the_groups_are_the_folders_of_conf() -> None:
    folders = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    assert folders == set(GROUPS)
    assert set(RUN_GROUPS) == {f.name for f in dataclasses.fields(RunSpec)} - {"budget", "evaluation", "seed"}


def test_the_options_are_those_promised() -> None:
    assert {group: options(group) for group in GROUPS} == {
        "model": ["hf", "llama2_7b", "smollm2_135m", "tiny"],
        "data": ["alpaca", "callable", "chat", "completion", "hf", "mixture", "taskmix", "text"],
        "method": [
            *("adalora", "bitfit", "bottleneck", "full", "ia3", "last_layers", "llama_adapter", "lora", "p_tuning"),
            *("p_tuning_v2", "prefix_tuning", "prompt_tuning", "vera"),
        ],
        "optimizer": sorted(OPTIMIZERS),
        "schedule": sorted(SCHEDULES),
        "sampler": [
            *("cmaes", "factorial", "fractional", "gp", "grid", "nsga2", "nsga3", "one_at_a_time"),
            *("plackett_burman", "qmc", "random", "target", "tpe"),
        ],
        "pruner": [
            *(
                "asha",
                "hyperband",
                "median",
                "none",
                "patience",
                "percentile",
                "population",
                "target",
                "threshold",
                "wilcoxon",
            ),
        ],
        "tracking": ["mlflow", "none"],
        "launcher": ["local", "ray", "slurm"],
    }


@pytest.mark.parametrize(
    ("path", "above"),
    [("data.columns.output", "data.columns"), ("sweep.space", "sweep.space"), ("method.r", None), ("foo.bar", None)],
)
def test_free_mappings_are_found(path: str, above: str | None) -> None:
    assert free_above(SWEEP, path) == above


@pytest.mark.parametrize("path", [path for path in kinds(SWEEP) if "." in path])
def test_a_typing_error_in_any_key_is_answered_with_that_key(path: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_tree(SWEEP, _nested(path + path[-1]), "here")
    message = str(refusal.value)
    assert message.startswith("here: no config key")
    assert f"did you mean {path!r}?" in message


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("r", "method.r"),
        ("lr", "optimizer.lr"),
        ("method.lr", "optimizer.lr"),
        ("data.layers", "method.layers"),
        ("methd.r", "method.r"),
        ("modle", "model"),
        ("modle.name", "model.name"),
        ("sweep.spce.method.r", "sweep.space"),
        ("method.r.x", "method.r"),
        ("sweep.objektive.metric", "sweep.objective.metric"),
    ],
)
def test_the_nearest_key_is_found_wherever_it_stands(path: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in unknown_key(SWEEP, path)


def test_a_key_of_sweeps_is_not_just_unknown_to_a_run() -> None:
    assert "use it with `lora-lab sweep`" in unknown_key(RUN, "sweep.repeats")
    assert "use it with `lora-lab sweep`" in unknown_key(RUN, "tracking")


@pytest.mark.parametrize(
    "tree", [{"method": 3}, {"sweep": {"space": [1]}}, {"model": {"config": "llama"}}, {"budget": None}]
)
def test_one_value_where_a_group_belongs_is_refused(tree: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="is a group of settings and cannot be"):
        check_tree(SWEEP, tree, "file.yaml")


def _nested(path: str) -> dict[str, object]:
    tree: object = 1
    for part in reversed(path.split(".")):
        tree = {part: tree}
    assert isinstance(tree, dict)
    return tree
