"""Lanes under every optimizer: stopped and resumed bit for bit, alone and in company the same, averages shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from parity.lanes import Listener, run_pack, tiny
from safetensors.torch import load_file

from lora_lab.engine.evaluate import Candidate, evaluate
from lora_lab.engine.lane import LaneJob
from lora_lab.models import BaseModel
from lora_lab.packing.paths import Mount
from lora_lab.spec import (
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    MethodSpec,
    OptimizerSpec,
    Outcome,
    RunSpec,
    ScheduleSpec,
)
from lora_lab.spec.optimizer import OPTIMIZERS

RATES = {"sgd": 0.1, "prodigy": 1.0, "lion": 1e-3, "sophiag": 1e-3, "sophiah": 1e-3}
NAMES = [name for name in OPTIMIZERS if name != "paged_adamw8bit"]


def spec(name: str, seed: int, **changes: object) -> RunSpec:
    """12 steps with dropout, LoRA+ and accumulation; the Hessian estimated at steps 1, 5 and 9."""
    return RunSpec(
        model=tiny("llama-tied-gqa"),
        data=DataSpec(train_size=20, eval_size=6, max_length=48),
        method=MethodSpec(r=4, dropout=0.1),
        optimizer=OptimizerSpec(name, lr=RATES.get(name, 5e-3), lora_plus_ratio=2.0, layer_decay=0.8, hessian_every=4),
        schedule=ScheduleSpec("cosine", warmup_ratio=0.2),
        budget=BudgetSpec(steps=12, batch_size=4, micro_batch_size=3),
        evaluation=EvaluationSpec(every_steps=3),
        seed=seed,
    ).at(changes)


@pytest.fixture(scope="module")
def whole(bases: Callable[..., BaseModel], tmp_path_factory: pytest.TempPathFactory, tokens: Callable[..., object]):
    """All optimizers in one pack, never stopped: what was heard, and the lanes' ends."""
    folder, listener = tmp_path_factory.mktemp("whole"), Listener()
    specs = {name: spec(name, seed) for seed, name in enumerate(NAMES)}
    jobs = [LaneJob(n, s, tokens(s.data), folder / n) for n, s in specs.items()]  # type: ignore[arg-type]
    return listener, run_pack(bases("llama-tied-gqa"), jobs, listener, len(jobs))


def test_stopped_after_6_steps_and_resumed_is_12_steps(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob], whole: tuple[Listener, dict]
) -> None:
    """All in one pack as in the unstopped run, so that every bit must agree."""
    base, jobs = bases("llama-tied-gqa"), [job(name, spec(name, seed)) for seed, name in enumerate(NAMES)]
    first, second = Listener(), Listener()
    first.pause_after = 6
    stopped = run_pack(base, jobs, first, len(jobs))
    assert {(end.outcome, end.lane.step) for end in stopped.values() if end.lane} == {(Outcome.PREEMPTED, 6)}
    ended = run_pack(base, jobs, second, len(jobs))
    through, ends = whole
    for name in NAMES:
        assert ended[name].outcome is ends[name].outcome is Outcome.COMPLETED
        assert first.losses(name) + second.losses(name) == through.losses(name), name
        a, b = ended[name].lane, ends[name].lane
        assert a is not None and b is not None and a.last is not None and b.last is not None
        assert a.last.loss == b.last.loss
        assert a.flops == b.flops
        for key, value in a.attachment.state_dict().items():
            assert torch.equal(value, b.attachment.state_dict()[key]), (name, key)


@pytest.mark.parametrize("name", NAMES)
def test_alone_is_as_in_company(
    name: str, bases: Callable[..., BaseModel], job: Callable[..., LaneJob], whole: tuple[Listener, dict]
) -> None:
    """8-bit averages and Newton-Schulz in bfloat16 round what differs in the last bit of float64 to other values."""
    tolerance = {"adamw8bit": 1e-4, "muon": 1e-4}.get(name, 1e-8)
    listener = Listener()
    end = run_pack(bases("llama-tied-gqa"), [job(name, spec(name, NAMES.index(name)))], listener, 1)[name]
    losses = torch.tensor(listener.losses(name))
    torch.testing.assert_close(losses, torch.tensor(whole[0].losses(name)), rtol=tolerance, atol=0)
    lane, other = end.lane, whole[1][name].lane
    assert lane is not None and lane.last is not None and other.last is not None
    assert lane.last.loss == pytest.approx(other.last.loss, rel=tolerance)
    assert min(listener.losses(name)[6:]) < listener.losses(name)[0], "it must learn"


def test_schedule_free_is_evaluated_and_saved_as_its_average(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    """The steps do not depend on how often one looks; the held-out loss and the file are those of the average."""
    base = bases("llama-tied-gqa")
    often, once = Listener(), Listener()
    wanted = spec("schedulefree_adamw", 1, **{"optimizer.lr": 0.03, "schedule.name": "constant"})
    ends = run_pack(base, [job("often", wanted)], often, 1)
    seldom = wanted.at({"evaluation.every_steps": None})
    run_pack(base, [job("once", seldom)], once, 1)
    assert often.losses("often") == once.losses("once")
    lane = ends["often"].lane
    assert lane is not None and lane.optimizer is not None
    beta1 = wanted.optimizer.own["beta1"]
    averages = {k: v.clone() for k, v in lane.attachment.state_dict().items()}
    lane.save_adapter("base")
    saved = load_file(lane.job.folder / "adapter" / "adapter_model.safetensors")
    lane.optimizer.train()  # type: ignore[attr-defined]
    flats = {p.untyped_storage().data_ptr(): p for group in lane.optimizer.param_groups for p in group["params"]}
    for name, parameter in lane.attachment.parameters().items():
        start = parameter.storage_offset()
        z = lane.optimizer.state[flats[parameter.untyped_storage().data_ptr()]]["z"][start : start + parameter.numel()]
        z = z.view_as(parameter)
        torch.testing.assert_close(parameter.detach(), beta1 * averages[name] + (1 - beta1) * z)
        assert not torch.allclose(parameter, averages[name])
        torch.testing.assert_close(saved[name], averages[name], rtol=0, atol=0)
        parameter.data.copy_(averages[name])
    mount = Mount(base)
    mount.mount(lane.attachment)
    (found,) = evaluate(mount, [Candidate(lane.attachment, lane.held_out, 12, 32)])
    mount.unmount()
    assert lane.last is not None and found.loss == pytest.approx(lane.last.loss, rel=1e-9)
