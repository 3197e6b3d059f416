"""``lora-lab measure``: configurations alone in fresh processes, beside their plans."""

import json

import pytest

from lora_lab.cli.main import main

TINY = ("model=tiny", "data.max_length=64", "budget.batch_size=2", "device=cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_is_measured_alone_beside_its_plan(capfd):
    assert main(["measure", *TINY, "--steps=1", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    assert row["live_bytes"] == pytest.approx(row["predicted_bytes"], rel=0.05)
    assert row["error"] == pytest.approx(row["predicted_bytes"] / row["live_bytes"] - 1)
    assert row["rss_bytes"] > row["rss_before_bytes"] > 0
    assert row["allocated_bytes"] is None
    assert row["seconds_per_step"] > 0
    assert row["trainable_parameters"] == 1792


def test_a_comparison_is_a_table_and_says_what_could_not_be_measured(capfd):
    """A model of 128 positions: the lengths beyond them are rows with a reason."""
    overrides = ["+model.config.max_position_embeddings=128", "--compare=full", "--steps=1", "--markdown"]
    assert main(["measure", *TINY, "model.quantization=nf4", *overrides]) == 0
    said = capfd.readouterr()
    assert "| name=full" in said.out.replace("method.name", "name")
    assert "not measured" in said.out
    assert "quantis" in said.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--compare=lenghts"], "did you mean 'lengths'?"),
        (["rank_alpha", "--compare=full"], "leave the SWEEP out"),
        (["model.name=tiny", "method.rr=1"], "method.r"),
    ],
)
def test_bad_input_ends_with_2(capfd, argv, message):
    assert main(["measure", *argv]) == 2
    assert message in capfd.readouterr().err
