"""Schedules against transformers' own over whole runs."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler
from transformers.optimization import get_polynomial_decay_schedule_with_warmup

from lora_lab.errors import SpecError
from lora_lab.optim.schedules import CURVES, factor
from lora_lab.spec import ScheduleSpec
from lora_lab.spec.optimizer import SCHEDULES

TOTAL = 40
CASES = {
    "constant": (ScheduleSpec("constant"), "constant_with_warmup", {}),
    "linear": (ScheduleSpec("linear"), "linear", {}),
    "linear to a tenth": (ScheduleSpec("linear", min_lr_ratio=0.1), None, {"lr_end": 0.1, "power": 1.0}),
    "cosine": (ScheduleSpec("cosine"), "cosine", {}),
    "cosine to a tenth": (
        ScheduleSpec("cosine", min_lr_ratio=0.1),
        "cosine_with_min_lr",
        {"min_lr_rate": 0.1},
    ),
    "cosine_restarts": (
        ScheduleSpec("cosine_restarts", cycles=3),
        "cosine_with_restarts",
        {"num_cycles": 3},
    ),
    "inverse_sqrt": (ScheduleSpec("inverse_sqrt"), "inverse_sqrt", {}),
    "inverse_sqrt, own timescale": (ScheduleSpec("inverse_sqrt", timescale=7), "inverse_sqrt", {"timescale": 7}),
    **{
        f"wsd {curve}": (
            ScheduleSpec("wsd", decay_share=0.3, decay_curve=curve, min_lr_ratio=0.05),
            "warmup_stable_decay",
            {"num_decay_steps": 12, "decay_type": curve, "min_lr_ratio": 0.05},
        )
        for curve in ("linear", "cosine", "1-sqrt")
    },
}


def test_every_schedule_has_its_line_and_its_reference() -> None:
    assert set(CURVES) == set(SCHEDULES) == {spec.name for spec, _, _ in CASES.values()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_curves_are_those_of_transformers(case: str, warmup: int) -> None:
    """After the warm-up, whose first step has rate 0 there and 1/warmup here."""
    spec, name, extra = CASES[case]
    spec = ScheduleSpec(**{**vars(spec), "warmup_steps": warmup})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if name is None:
        theirs = get_polynomial_decay_schedule_with_warmup(optimizer, warmup, TOTAL, **extra)
    else:
        theirs = get_scheduler(name, optimizer, warmup, TOTAL, scheduler_specific_kwargs=extra)
    for step in range(TOTAL):
        mine = factor(spec, step, TOTAL)
        if step < warmup:
            assert mine == pytest.approx((step + 1) / warmup)
        else:
            assert mine == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_warm_up_ratio_is_that_share_of_the_steps_rounded_up() -> None:
    """As transformers' Trainer rounds it."""
    by_ratio, by_steps = ScheduleSpec("cosine", warmup_ratio=0.11), ScheduleSpec("cosine", warmup_steps=5)
    assert [factor(by_ratio, s, 40) for s in range(40)] == [factor(by_steps, s, 40) for s in range(40)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(10, 4), (4, 4), (0, 1), (3, 5)])
def test_short_runs_have_a_positive_rate_at_every_step(name: str, warmup: int, total: int) -> None:
    spec = ScheduleSpec(name, warmup_steps=warmup)
    assert all(0.0 < factor(spec, step, total) <= 1.0 for step in range(total))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"warmup_steps": -1}, "0 or more"),
        ({"warmup_ratio": 1.5}, r"schedule.warmup_ratio: must be in \[0, 1\], got 1.5"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "same thing twice"),
        ({"name": "linear", "min_lr_ratio": -0.1}, "min_lr_ratio"),
        ({"name": "wsd", "decay_share": 2.0}, "decay_share"),
        ({"name": "wsd", "decay_curve": "square"}, "Known: linear, cosine, 1-sqrt"),
        ({"name": "cosine_restarts", "cycles": 0}, "1 or more"),
        ({"name": "inverse_sqrt", "timescale": 0}, "1 or more"),
    ],
)
def test_impossible_schedules_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ScheduleSpec(**fields)  # type: ignore[arg-type]
