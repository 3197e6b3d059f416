"""The methods that the benchmark compares train the same thing: one loss for a run, whichever method trains it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from throughput import loop, packed, trainer
from throughput.timing import Found, Stopwatch
from throughput.workload import Planned, Shape, even_sample, planned, points

from lora_lab import models
from lora_lab.models import BaseModel

FIRST, STEPS = 2, 6


@pytest.fixture(scope="module")
def base() -> Iterator[BaseModel]:
    yield models.load(points(["model=tiny"], 1)[0].model)


def runs_of(base: BaseModel, shape: Shape, count: int, *words: str) -> list[Planned]:
    settings = ["model=tiny", *shape.overrides, "data.train_size=256", f"budget.steps={STEPS}", *words]
    specs = points(settings, count)
    return planned(base, shape, [f"run{i}" for i in range(count)], specs)


@pytest.fixture(scope="module")
def runs(base: BaseModel) -> list[Planned]:
    """Three runs that learn within six steps, without dropout, whose masks each library draws in its own way."""
    found = runs_of(base, Shape.read("2x24"), 3)
    return [replace(run, spec=run.spec.at({"method.dropout": 0.0, "optimizer.lr": 0.05})) for run in found]


def check(found: Found, reference: Found) -> None:
    assert found.seconds > 0
    assert found.flops == pytest.approx(reference.flops)
    assert found.losses == pytest.approx(reference.losses, rel=5e-5)


def test_every_method_has_the_same_losses_and_counts_the_same_work(base: BaseModel, runs: list[Planned]) -> None:
    modules = [name for name, _ in base.model.named_modules()]
    reference = packed.train(base, runs, FIRST, lanes=3)
    assert set(reference.losses) == {run.name for run in runs}
    assert len({round(loss, 3) for loss in reference.losses.values()}) == 3, "the runs must differ to be compared"
    check(packed.train(base, runs, FIRST, lanes=1), reference)
    check(loop.train(base, runs, FIRST), reference)
    for every_logit in (False, True):
        check(trainer.train(base, runs, FIRST, every_logit=every_logit), reference)
    assert [name for name, _ in base.model.named_modules()] == modules


def test_blocks_have_the_length_asked_for(runs: list[Planned]) -> None:
    batches = runs[0].batches()
    assert len(batches) == STEPS
    assert all(len(batch) == 2 and {len(ids) for ids, _ in batch} == {24} for batch in batches)
    assert {int(supervised.sum()) for batch in batches for _, supervised in batch} == {14}


def test_real_lengths_are_batched_by_length(base: BaseModel) -> None:
    """As group_by_length does: far less padding than batches drawn at random, and short and long ones in every run."""
    shape = Shape("tasks", 4, None)
    settings = ["model=tiny", "data.train_size=512", f"budget.steps={STEPS}", "budget.batch_size=4"]
    (run,) = planned(base, shape, ["run"], points(settings, 1))
    lengths = [[len(ids) for ids, _ in batch] for batch in run.batches()]
    assert len(lengths) == STEPS
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in lengths) / sum(map(sum, lengths))
    assert padding < 0.1
    assert max(map(max, lengths)) > 2 * min(map(min, lengths))


def test_a_sample_of_the_runs_is_even_in_the_size_of_their_adapters() -> None:
    specs = points(["model=tiny"], 16)
    size = [spec.method.r * len(spec.method.mask) for spec in specs]
    sample = sorted(size[i] for i in even_sample(specs, 4))
    quarters = [sorted(size)[i : i + 4] for i in range(0, 16, 4)]
    assert all(quarter[0] <= value <= quarter[-1] for value, quarter in zip(sample, quarters, strict=True))
    assert even_sample(specs, 16) == list(range(16))


def test_the_stopwatch_counts_neither_the_first_steps_nor_what_lies_between_runs() -> None:
    watch = Stopwatch(1, torch.device("cpu"))
    for _ in range(2):
        time.sleep(0.05)
        watch.begin()
        time.sleep(0.05)
        watch.step()
        time.sleep(0.02)
        watch.step()
        time.sleep(0.02)
        watch.step()
        time.sleep(0.05)
        watch.end()
    assert 0.08 <= watch.seconds < 0.16


@pytest.mark.parametrize("name", ["64", "x64", "alpaca-nf4", "int8-1x64"])
def test_what_is_no_shape_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no shape"):
        Shape.read(name)
