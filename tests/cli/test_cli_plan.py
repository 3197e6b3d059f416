"""``lora-lab plan``: one run, a whole space, and what is refused."""

import json

import pytest

from lora_lab.cli.main import main
from lora_lab.spec import ROLES


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def answer(capsys, *argv):
    assert main(["plan", *argv]) == 0
    return capsys.readouterr().out


def test_llama_2_7b_without_a_hub(capsys):
    run = ["model=llama2_7b", "method.roles=[query,value]", "method.r=8", "data.max_length=1304"]
    tree = json.loads(answer(capsys, *run, "budget.micro_batch_size=1", "device=cpu", "--json"))
    assert tree["trainable_parameters"] == 4_194_304
    assert tree["total_parameters"] == 6_738_415_616
    assert sum(tree["parts"].values()) == tree["peak_bytes"]
    assert {"flops_per_step", "lanes_that_fit", "fits", "reasons"} <= set(tree)


def test_one_run_for_people(capsys):
    text = answer(capsys, "model=tiny", "method.roles=[query,mlp]", "device=cpu", "--memory", "1GB", "--lanes", "2")
    assert "by role         query 1,024, mlp 4,608" in text
    assert "for 2 lanes, of 1.00 GB" in text
    assert "made of         weights" in text
    assert text.splitlines()[-1] == "it fits"


def test_what_does_not_fit_is_an_answer(capsys):
    text = answer(capsys, "model=tiny", "device=cpu", "--memory=2MB")
    assert "does not fit: one lane needs" in text
    assert "fits" in text.splitlines()[-1]


def test_a_gpu_that_is_not_here_can_be_planned_for(capsys):
    assert json.loads(answer(capsys, "model=tiny", "device=cuda", "--memory", "24GB", "--json"))["fits"]


def test_points_that_take_the_same_are_one_row(capsys):
    tree = json.loads(answer(capsys, "rank_alpha", "--json", "model=tiny", "device=cpu", "--memory", "1GB"))
    assert tree["sweep"] == "rank_alpha"
    assert [row["point"] for row in tree["points"]] == [{"method.r": r} for r in (2, 8, 32)]
    assert [row["trainable_parameters"] for row in tree["points"]] == [224 * r for r in (2, 8, 32)]
    assert tree["fits"]
    assert tree["lanes_that_fit"] == min(row["lanes_that_fit"] for row in tree["points"]) > 0


def test_a_space_for_people(capsys):
    text = answer(capsys, "rank_alpha", "model=tiny", "device=cpu", "--memory", "2MB")
    assert "method.r" in text
    assert "method.alpha_over_r" not in text
    assert "method.r=32: one lane needs" in text


def test_a_sweep_takes_as_long_as_its_runs(capsys):
    """Time adds up over points and seeds, and what costs nothing is still a run."""
    options = ["model=tiny", "device=cpu", "--memory", "1GB", "--json", "data.train_size=64"]
    tree = json.loads(answer(capsys, "rank_alpha", *options, "budget.steps=10", "sweep.repeats=3"))
    assert tree["runs"] == tree["runs_that_fit"] == 27
    assert [row["runs"] for row in tree["points"]] == [9, 9, 9], "three alphas, three seeds"
    each = [9 * 10 * row["seconds_per_step"] for row in tree["points"]]
    assert [row["seconds"] for row in tree["points"]] == pytest.approx(each)
    assert tree["seconds_per_sweep"] == pytest.approx(sum(each))
    epochs = json.loads(answer(capsys, "rank_alpha", *options, "budget.steps=null", "sweep.repeats=3"))
    assert epochs["seconds_per_sweep"] == pytest.approx(sum(each) * 8 / 10), "64 examples in batches of 8"


def test_paths_under_a_condition_are_planned_where_they_are_searched(capsys):
    space = "optimizer.name: [adamw, sgd], optimizer.momentum: {choices: [0.0, 0.9], when: {optimizer.name: sgd}}"
    options = ["model=tiny", "device=cpu", "--memory=1GB", "--json", f"sweep.space={{{space}}}"]
    points = json.loads(answer(capsys, "rank_alpha", *options))["points"]
    assert [row["point"] for row in points] == [
        {"optimizer.name": "adamw"},
        {"optimizer.name": "sgd", "optimizer.momentum": 0.0},
        {"optimizer.name": "sgd", "optimizer.momentum": 0.9},
    ]
    adam, plain, momentum = (row["parts"]["optimizer"] for row in points)
    assert adam > momentum > plain == 0


def test_memory_can_be_a_setting_of_the_device(capsys):
    one, two = (
        json.loads(answer(capsys, "model=tiny", "device=cpu", "--json", *words))
        for words in (["device.memory=24GB"], ["--memory", "24GB"])
    )
    assert one == two
    assert one["memory"] == 24 * 10**9


def test_ranges_are_planned_at_their_ends_and_masks_by_name(capsys):
    space = (
        "sweep.space={method.r: {int: [1, 9]}, optimizer.lr: {float: [0.1, 1]}, method.roles: {masks: [[], [query]]}}"
    )
    options = ["sampler=random", "sweep.trials=3", "device=cpu", "--memory=1GB"]
    text = answer(capsys, "rank_alpha", "model=tiny", space, *options)
    points = [line.split()[:2] for line in text.splitlines() if line.strip()[:1] in ("1", "9")]
    assert points == [["1", "none"], ["1", "query"], ["9", "query"]]  # no rank where nothing is adapted


def test_a_point_that_contradicts_itself_is_a_row_with_the_reason(capsys):
    space = "sweep.space={budget.batch_size: [4, 16], budget.micro_batch_size: [2, 8]}"
    options = ["sampler=random", "sweep.trials=3", "budget.batch_size=16", "device=cpu", "--memory=1GB"]
    text = answer(capsys, "rank_alpha", "model=tiny", space, *options)
    assert "refused" in text
    assert "budget.micro_batch_size=8 is larger than budget.batch_size=4" in text
    tree = json.loads(answer(capsys, "rank_alpha", "model=tiny", space, *options, "--json"))
    assert [row["fits"] for row in tree["points"]] == [True, False, True, True]
    assert not tree["fits"]


def test_a_space_in_which_nothing_matters_is_one_row(capsys):
    text = answer(
        capsys, "rank_alpha", "model=tiny", "sweep.space={optimizer.lr: [0.1, 0.2]}", "device=cpu", "--memory=1GB"
    )
    assert "all points" in text


def test_masks_of_a_space_add_up_role_by_role(capsys):
    masks = "[[], [query], [key], [value], [projection], [mlp], [head], [query, key, value, projection, mlp, head]]"
    options = ["model=tiny", f"sweep.space={{method.roles: {{masks: {masks}}}}}", "data.max_length=16", "device=cpu"]
    tree = json.loads(answer(capsys, "rank_alpha", *options, "--memory=1GB", "--json"))
    counts = {tuple(row["point"]["method.roles"]): row["trainable_parameters"] for row in tree["points"]}
    assert len(counts) == 8
    assert counts[()] == 0
    assert counts[ROLES] == sum(counts[(role,)] for role in ROLES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rank_alpah"], "rank_alpha"),
        (["model=tiny", "--memory=lots"], "not a size"),
        (["model=tiny", "--lanes=0"], "lanes: must be 1 or more"),
        (["model=tiny", "method.rr=3"], "method.r"),
        (["model=tiny", "method.layers=[9]"], "Choose among those"),
        (["model=tiny", "device=tpu"], "device"),
    ],
)
def test_bad_input_ends_with_2_and_a_remedy(capsys, argv, message):
    assert main(["plan", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
