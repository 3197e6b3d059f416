"""Outcomes stay apart: what goes wrong in one lane is that lane's own, and each way to go wrong has its own end."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_lab import models
from lora_lab.config import compose_sweep
from lora_lab.engine.lane import Lane
from lora_lab.engine.pack import Pack
from lora_lab.errors import OutOfMemory
from lora_lab.launch import local
from lora_lab.spec import Outcome, RunResult
from lora_lab.study import Study
from lora_lab.worker.results import outcome_of
from lora_lab.worker.tee import Tee

Results = dict[str, RunResult]


@pytest.fixture
def swept(tmp_path: Path) -> Callable[..., Results]:
    """Run a tiny sweep over three ranks in this process, and give its results by run."""

    def run(*more: str) -> Results:
        composed = compose_sweep(
            "rank_alpha",
            ["model=tiny", "data.train_size=16", "data.eval_size=4", "budget.steps=8", "budget.batch_size=4",
             "evaluation.exact_match=false", "evaluation.every_steps=null", "tracking=none", "sweep.repeats=1",
             "sweep.space={method.r: {choices: [2, 4, 8]}}", f"sweep.dir={tmp_path}/sweep", "pack.max_lanes=3", *more],
        )  # fmt: skip
        with Study.open(composed.sweep, composed.execution) as study:
            local.run(
                composed.sweep, composed.execution, study, Tee([]), say=lambda text: None, settled=lambda runs: None
            )
            return {result.run: result for result in study.results()}

    return run


@pytest.mark.parametrize(("method", "served"), [("lora", True), ("full", False)])
def test_checkpointing_that_serves_nothing_is_said(swept: Callable[..., Results], method: str, served: bool) -> None:
    results = swept("budget.checkpointing=true", f"method.name={method}", "sweep.space={optimizer.lr: [1e-3]}")
    assert {result.outcome for result in results.values()} == {Outcome.COMPLETED}
    said = [result.message or "" for result in results.values()]
    assert all(("budget.checkpointing has no effect" in text) is not served for text in said)


def test_a_bug_in_one_lanes_construction_is_that_lanes_failure(
    swept: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Lane.__init__

    def broken(self: Lane, job: Any, base: Any) -> None:
        if job.spec.method.r == 4:
            raise KeyError("a bug")
        real(self, job, base)

    monkeypatch.setattr(Lane, "__init__", broken)
    results = swept()
    assert [result.outcome for result in results.values()] == [Outcome.COMPLETED, Outcome.FAILED, Outcome.COMPLETED]
    failed = results["t0001-s0"]
    assert failed.message is not None and "Traceback" in failed.message and "KeyError: 'a bug'" in failed.message
    assert failed.attempts == 2, "in company, and alone"


def test_a_bug_in_the_middle_of_a_step_is_found_by_training_alone(
    swept: Callable[..., Results], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = swept("sweep.name=alone")
    real = Pack._gradients

    def broken(self: Pack) -> Any:
        if any(lane.spec.method.r == 4 and lane.step == 3 for lane in self.lanes):
            raise ValueError("a bug")
        return real(self)

    monkeypatch.setattr(Pack, "_gradients", broken)
    results = swept("sweep.name=broken", f"sweep.dir={tmp_path}/broken")
    assert [result.outcome for result in results.values()] == [Outcome.COMPLETED, Outcome.FAILED, Outcome.COMPLETED]
    for name in ("t0000-s0", "t0002-s0"):
        assert results[name].eval_loss == pytest.approx(alone[name].eval_loss, rel=1e-5)


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
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), Outcome.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), Outcome.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), Outcome.OUT_OF_MEMORY),
        (OutOfMemory("too little memory for an evaluation; CUDA out of memory"), Outcome.FAILED),
        (ValueError("a bug"), Outcome.FAILED),
    ],
)
def test_what_an_error_makes_of_a_run(error: Exception, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def test_out_of_memory_goes_on_alone_in_smaller_parts_with_the_same_batch(
    swept: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = Pack._gradients, []

    def limited(self: Pack) -> Any:
        for lane in self.lanes:
            if lane.spec.method.r == 8:
                tries.append((len(self.lanes), lane.spec.budget.micro))
                if lane.spec.budget.micro > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self)

    monkeypatch.setattr(Pack, "_gradients", limited)
    results = swept()
    assert {result.outcome for result in results.values()} == {Outcome.COMPLETED}
    small = results["t0002-s0"]
    assert small.message == "trained in micro-batches of 1"
    assert [micro for _, micro in dict.fromkeys(tries)][-3:] == [4, 2, 1]
    assert small.steps == 8 and small.tokens == results["t0000-s0"].tokens


def test_a_loss_that_explodes_has_diverged_though_it_is_finite(swept: Callable[..., Results]) -> None:
    results = swept("method.roles=[head]", "optimizer.lr=1", "optimizer.max_grad_norm=null", "schedule=constant")
    assert {result.outcome for result in results.values()} == {Outcome.DIVERGED}
    assert all("5.75 at step 1: it exploded" in (result.message or "") for result in results.values())
