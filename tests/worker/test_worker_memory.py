"""What a worker holds: one base, the lanes that train, and of each what was planned."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest

from lora_lab import models
from lora_lab.engine.lane import Lane
from lora_lab.planner import plan
from lora_lab.spec import Outcome, RunResult, RunSpec
from lora_lab.worker.capacity import Capacity

Results = dict[str, RunResult]


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """What each lane is made for, as they are made."""
    found: list[RunSpec] = []
    real = Lane.__init__

    def watched(self: Lane, job: Any, base: Any) -> None:
        found.append(job.spec)
        real(self, job, base)

    monkeypatch.setattr(Lane, "__init__", watched)
    return found


def test_one_base_at_a_time_is_in_memory(swept: Callable[..., Results], monkeypatch: pytest.MonkeyPatch) -> None:
    real, former = models.load, []

    def load(*asked: Any) -> Any:
        assert not [base for base in former if base() is not None]
        base = real(*asked)
        former.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(models, "load", load)
    results = swept("sweep.space={model.dtype: {choices: [float32, float64]}}")
    assert {result.outcome for result in results.values()} == {Outcome.COMPLETED} and len(former) == 2


@pytest.mark.parametrize("method", ["lora", "full"])
def test_who_ended_holds_no_memory_when_others_join(
    swept: Callable[..., Results], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real, former, held = Lane.__init__, [], []

    def watched(self: Lane, job: Any, base: Any) -> None:
        if len(former) in (2, 4):  # a whole pack has ended
            held.extend(run for run, lane in former if lane() is not None)
        real(self, job, base)
        former.append((self.run, weakref.ref(self)))

    monkeypatch.setattr(Lane, "__init__", watched)
    results = swept(
        f"method.name={method}", "sweep.space={optimizer.lr: [1e-3]}", "sweep.repeats=6", "pack.max_lanes=2"
    )
    assert {result.outcome for result in results.values()} == {Outcome.COMPLETED} and len(former) == 6
    assert held == []


@pytest.mark.parametrize(
    ("method", "optimizer", "evaluated"),
    [("lora", "adamw", "null"), ("lora", "adamw8bit", "2"), ("full", "sgd", "2"), ("prefix_tuning", "adamw", "null")],
)
def test_what_a_lane_adds_to_its_base_is_what_was_planned(
    swept: Callable[..., Results], specs: list[RunSpec], method: str, optimizer: str, evaluated: str
) -> None:
    settings = (f"optimizer={optimizer}", f"evaluation.every_steps={evaluated}")
    results = swept(f"method.name={method}", "sweep.space={optimizer.lr: [1e-3]}", *settings)
    (result,), (spec,) = results.values(), specs
    planned = plan(spec, memory=1 << 34, device="cpu").lane_bytes
    assert result.lane_bytes == pytest.approx(planned, rel=0.01)


def test_a_run_is_said_to_need_what_the_pack_needs_that_it_trained_in(
    swept: Callable[..., Results], specs: list[RunSpec]
) -> None:
    """Six such lanes go through the base in one pass, seven in two shorter ones: no six ever trained."""
    results = swept("sweep.space={optimizer.lr: [1e-3]}", "sweep.repeats=7", "pack.max_lanes=7")
    six, seven = (Capacity("cpu").predicted(specs[:lanes]) for lanes in (6, 7))
    assert six is not None and seven is not None and six > seven
    assert {result.predicted_bytes for result in results.values()} == {seven}
