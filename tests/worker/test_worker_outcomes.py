"""Outcomes stay apart: what goes wrong in one lane is that lane's own, and each way to go wrong has its own end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_lab.engine.lane import Lane
from lora_lab.engine.pack import Pack
from lora_lab.errors import OutOfMemory
from lora_lab.spec import Outcome, RunResult
from lora_lab.worker.results import outcome_of

Results = dict[str, RunResult]


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
