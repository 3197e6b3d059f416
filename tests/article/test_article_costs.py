"""What the sections' sweeps are said to take, before they start and on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_lab.article import Reproduction, sections
from lora_lab.article.costs import FROZEN, SHARE, TRAINED, Cost, costs_of
from lora_lab.files import write_json
from lora_lab.models import load_meta, total_parameters
from lora_lab.spec import Outcome, RunResult, to_tree

RATES = {"bfloat16": 6e9, "float32": 2e9}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reproduction:
    """LoRA on bfloat16 weights (S1) and full fine-tuning in float32 (Q8), on a machine of known rates."""
    monkeypatch.setattr("lora_lab.planner.speed.product_rate", lambda kind, dtype: RATES[dtype])
    return Reproduction("smoke", tmp_path, "taskmix", None, ("model.dtype=bfloat16",))


def costs(job: Reproduction) -> dict[str, Cost]:
    sweeps = job.to_train(sections(["S1"]))
    return {cost.name: cost for cost in costs_of({n: (s.sweep, Path(s.execution.folder)) for n, s in sweeps.items()})}


def seconds_a_token(cost: Cost) -> float:
    assert cost.seconds is not None and cost.tokens is not None
    return cost.seconds / cost.tokens


def settle(job: Reproduction, name: str, seconds_a_token: float) -> None:
    result = RunResult("t0000-s0", 0, 0, "key", Outcome.COMPLETED, tokens=1000, seconds=1000 * seconds_a_token)
    write_json(job.folder / name / "runs" / "t0000-s0" / "result.json", to_tree(result))


def test_full_fine_tuning_costs_its_own_products_in_its_own_dtype(job: Reproduction) -> None:
    found = costs(job)
    (section,) = sections(["Q8"])
    weights = total_parameters(load_meta(job.compose(section.parts[0]).sweep.base.model))
    lora, full = (seconds_a_token(found[name]) for name in ("s1_learning_rate", "q8_full"))
    assert lora == pytest.approx(FROZEN * weights / (SHARE * RATES["bfloat16"]))
    assert full == pytest.approx(TRAINED * weights / (SHARE * RATES["float32"]))


def test_settled_runs_say_what_the_others_will_take(job: Reproduction) -> None:
    before = costs(job)
    settle(job, "s1_learning_rate", 2 * seconds_a_token(before["s1_learning_rate"]))
    after = costs(job)
    assert after["s1_learning_rate"].settled == 1
    for name in before:
        assert seconds_a_token(after[name]) == pytest.approx(2 * seconds_a_token(before[name]))
