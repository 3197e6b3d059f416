"""A lane's memory is free when it has ended: before the next one joins, without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from parity.lanes import Listener

from lora_lab.engine.lane import LaneJob
from lora_lab.engine.pack import Pack
from lora_lab.models import BaseModel
from lora_lab.spec import BudgetSpec, DataSpec, EvaluationSpec, MethodSpec, OptimizerSpec, RunSpec
from lora_lab.spec.method import METHODS

DATA = DataSpec(train_size=20, eval_size=4, max_length=48)
OWN: dict[str, dict[str, Any]] = {
    "lora": {"dora": True},
    "adalora": {"r": 2, "init_r": 4},
    "bitfit": {"add_biases": True},
    "prefix_tuning": {"encoder_size": 8},
}


@pytest.mark.parametrize("name", METHODS)
def test_lanes_that_ended_are_gone_before_others_join(
    name: str, bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    base = bases("llama-tied-gqa", "float32")
    run = RunSpec(
        base.spec,
        DATA,
        MethodSpec(name, **OWN.get(name, {})),
        OptimizerSpec("adamw", lr=1e-3),
        budget=BudgetSpec(steps=3, batch_size=2),
        evaluation=EvaluationSpec(every_steps=1),
    )
    jobs = [job(f"{name}-{seed}", run, "first") for seed in range(4)]
    left: list[weakref.ref[Any]] = []

    def source() -> LaneJob | None:
        assert [ref for ref in left if ref() is not None] == []
        return jobs.pop(0) if jobs else None

    listener, ended = Listener(), 0
    pack = Pack(base, listener, listener, 2)
    gc.collect()
    gc.disable()
    try:
        for ends in pack.train(source):
            left += [weakref.ref(one) for end in ends for one in (end.lane, *end.lane.parameters)]  # type: ignore[union-attr]
            ended += len(ends)
            ends.clear()
    finally:
        gc.enable()
        pack.close()
    assert ended == 4
