"""What a lane computes does not depend on its company: packed equals solo, whatever the others do."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from parity.lanes import SHAPES, Listener, run_pack, tiny

from lora_lab.engine import checkpoint
from lora_lab.engine.lane import LaneJob
from lora_lab.errors import CheckpointError
from lora_lab.models import BaseModel
from lora_lab.spec import (
    ROLES,
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    MethodSpec,
    OptimizerSpec,
    Outcome,
    RunSpec,
    ScheduleSpec,
)

FUSED = {"gpt2-fused", "gpt_neox-fused"}


def random_spec(rng: random.Random, shape: str) -> RunSpec:
    """A run in which everything that may differ between lanes differs."""
    if shape in FUSED:
        roles = [*(("query", "key", "value") if rng.random() < 0.7 else ()), *rng.sample(ROLES[3:], rng.randint(0, 3))]
    else:
        roles = rng.sample(ROLES, rng.randint(0, 6))
    batch, rank = rng.choice([2, 4, 5]), rng.choice([1, 2, 8, 64])
    return RunSpec(
        model=tiny(shape),
        data=DataSpec(
            train_size=rng.choice([12, 20]),
            eval_size=6,
            max_length=rng.choice([40, 128]),
            mask_prompt=rng.random() < 0.7,
            seed=rng.randint(0, 1),
        ),
        method=MethodSpec(
            r=rank,
            alpha_over_r=rng.choice([0.5, 1.0, 2.0]),
            rslora=rng.random() < 0.3,
            roles=tuple(roles),
            layers=rng.choice([(), (1,)]),
            dropout=rng.choice([0.0, 0.1, 0.5]),
            init=rng.choice(["default", "gaussian", *(("pissa", "olora") if rank < 64 else ())]),
            dora=rng.random() < 0.3,
        ),
        optimizer=rng.choice(
            [
                OptimizerSpec(lr=rng.choice([1e-3, 1e-2]), weight_decay=rng.choice([0.0, 0.1])),
                OptimizerSpec(name="sgd", lr=0.1, momentum=rng.choice([0.0, 0.9]), max_grad_norm=None),
                OptimizerSpec(name="lion", lr=1e-3),
                OptimizerSpec(name="adafactor", lr=1e-2),
                OptimizerSpec(lr=1e-3, lora_plus_ratio=4.0 if roles else None, layer_decay=0.7),
            ]
        ),
        schedule=ScheduleSpec(rng.choice(["constant", "linear", "cosine"]), rng.choice([0, 3])),
        budget=BudgetSpec(steps=rng.randint(3, 9), batch_size=batch, micro_batch_size=rng.choice([None, 2])),
        evaluation=EvaluationSpec(every_steps=rng.choice([None, 2]), batch_size=rng.choice([2, 8])),
        seed=rng.randint(0, 99),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(2))
def test_a_random_pack_gives_every_lane_its_solo_trajectory(
    shape: str, seed: int, bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    """Fewer slots than runs, so that lanes join late; different lengths, so that they end early."""
    rng = random.Random(f"{shape}{seed}")
    specs = {f"run{i}": random_spec(rng, shape) for i in range(rng.randint(5, 16))}
    packed, solo = Listener(), Listener()
    slots = rng.randint(3, 8)
    ends = run_pack(bases(shape), [job(n, s, "packed") for n, s in specs.items()], packed, slots)
    alone = run_pack(bases(shape), [job(n, s, "solo") for n, s in specs.items()], solo, 1)
    for name, spec in specs.items():
        assert ends[name].outcome is alone[name].outcome is Outcome.COMPLETED, spec
        assert len(packed.losses(name)) == (spec.budget.steps if spec.method.mask else 0)
        torch.testing.assert_close(
            torch.tensor(packed.losses(name)), torch.tensor(solo.losses(name)), rtol=1e-9, atol=1e-12
        )
        a, b = ends[name].lane, alone[name].lane
        assert a is not None and b is not None and a.last is not None and b.last is not None
        assert math.isclose(a.last.loss, b.last.loss, rel_tol=1e-9)
        for key, value in a.attachment.state_dict().items():
            torch.testing.assert_close(value, b.attachment.state_dict()[key], rtol=1e-7, atol=1e-10)


METHODS = {
    "lora": {"method.roles": ROLES, "method.dropout": 0.2},
    "dora": {"method.dora": True, "method.dropout": 0.2},
    "adalora": {"method.name": "adalora"},
    "vera": {"method.name": "vera", "method.r": 16},
    "ia3": {"method.name": "ia3", "method.roles": ("key", "value", "mlp")},
    "bottleneck": {"method.name": "bottleneck"},
    "bitfit": {"method.name": "bitfit", "method.roles": ("query", "mlp"), "method.add_biases": True},
    "last_layers": {"method.name": "last_layers"},
    "prompt_tuning": {"method.name": "prompt_tuning", "method.virtual_tokens": 3},
    "p_tuning": {"method.name": "p_tuning", "method.virtual_tokens": 2},
    "prefix_tuning": {"method.name": "prefix_tuning", "method.virtual_tokens": 4},
    "llama_adapter": {"method.name": "llama_adapter", "method.virtual_tokens": 3, "method.top_layers": 1},
    "full": {"method.name": "full"},
}


def test_every_method_trains_beside_all_others_as_alone(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    base = bases("llama-tied-gqa")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    specs = {name: plain(i, **changes) for i, (name, changes) in enumerate(METHODS.items())}
    packed, solo = Listener(), Listener()
    ends = run_pack(base, [job(n, s, "packed") for n, s in specs.items()], packed, len(specs))
    run_pack(base, [job(n, s, "solo") for n, s in specs.items()], solo, 1)
    for name in specs:
        assert ends[name].outcome is Outcome.COMPLETED, ends[name].message
        mine, theirs = (torch.tensor(listener.losses(name)) for listener in (packed, solo))
        assert len(mine) == 8
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=0, msg=name)
        moved = {e.loss for e in packed.evaluations[name]}
        assert len(moved) == len(packed.evaluations[name]), f"{name} does not train"
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())


def plain(seed: int, **changes: object) -> RunSpec:
    spec = RunSpec(
        model=tiny("llama-tied-gqa"),
        data=DataSpec(train_size=20, eval_size=6),
        method=MethodSpec(r=4, roles=ROLES, dropout=0.1),
        optimizer=OptimizerSpec(lr=5e-3),
        budget=BudgetSpec(steps=8, batch_size=4),
        evaluation=EvaluationSpec(every_steps=2),
        seed=seed,
    )
    return spec.at(changes)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_lane_that_diverges_moves_no_other_by_one_bit(
    slot: int, bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    """An SGD at rate 1e200 is infinite after its first step and NaN in its second; it ends DIVERGED alone."""
    base = bases("llama-tied-gqa")
    wild = plain(9, **{"optimizer.name": "sgd", "optimizer.lr": 1e200, "optimizer.max_grad_norm": None})
    calm = {"calm1": plain(1), "calm2": plain(2)}
    order = [*calm.items()]
    order.insert(slot, ("wild", wild))
    with_wild, same_shapes = Listener(), Listener()
    ends = run_pack(base, [job(n, s, "wild") for n, s in order], with_wild, 3)
    tame = [(n, plain(9) if n == "wild" else s) for n, s in order]
    run_pack(base, [job(n, s, "tame") for n, s in tame], same_shapes, 3)
    assert ends["wild"].outcome is Outcome.DIVERGED
    assert "step" in (ends["wild"].message or "")
    died = len(with_wild.losses("wild"))
    assert 1 <= died < 8
    for name in calm:
        assert ends[name].outcome is Outcome.COMPLETED
        mine, other = with_wild.losses(name), same_shapes.losses(name)
        assert mine[: died + 1] == other[: died + 1], "bit for bit up to and including the step of the divergence"
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(other), rtol=1e-9, atol=0)


def test_a_pruned_lane_leaves_the_others_as_they_are(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    base = bases("llama-tied-gqa")
    listener, alone = Listener(), Listener()
    listener.stop = {"b"}
    ends = run_pack(base, [job(n, plain(i), "p") for i, n in enumerate("abc")], listener, 3)
    assert [ends[n].outcome for n in "abc"] == [Outcome.COMPLETED, Outcome.PRUNED, Outcome.COMPLETED]
    assert len(listener.losses("b")) == 2
    run_pack(base, [job("c", plain(2), "s")], alone, 1)
    torch.testing.assert_close(torch.tensor(listener.losses("c")), torch.tensor(alone.losses("c")), rtol=1e-9, atol=0)


def test_a_paused_pack_goes_on_as_if_never_stopped(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    base = bases("llama-tied-gqa")
    specs = {"a": plain(1), "b": plain(2, **{"optimizer.name": "sgd", "optimizer.momentum": 0.9, "budget.steps": 5})}
    whole = Listener()
    through = run_pack(base, [job(n, s, "whole") for n, s in specs.items()], whole, 2)
    first, second = Listener(), Listener()
    first.pause_after = 3
    stopped = run_pack(base, [job(n, s, "torn") for n, s in specs.items()], first, 2)
    assert {end.outcome for end in stopped.values()} == {Outcome.PREEMPTED}
    ended = run_pack(base, [job(n, s, "torn") for n, s in specs.items()], second, 2)
    for name in specs:
        assert first.losses(name) + second.losses(name) == whole.losses(name)
        a, b = ended[name].lane, through[name].lane
        assert a is not None and b is not None
        assert a.last is not None and b.last is not None and a.last.loss == b.last.loss
        assert a.best is not None and b.best is not None and (a.best.step, a.best.loss) == (b.best.step, b.best.loss)
        assert (a.tokens, a.step) == (b.tokens, b.step)
        assert a.train_loss == b.train_loss
        for key, value in a.attachment.state_dict().items():
            assert torch.equal(value, b.attachment.state_dict()[key])


def test_a_damaged_checkpoint_is_refused_by_name(bases: Callable[..., BaseModel], job: Callable[..., LaneJob]) -> None:
    base = bases("llama-tied-gqa")
    listener = Listener()
    listener.pause_after = 2
    run_pack(base, [job("a", plain(1))], listener, 1)
    path = job("a", plain(1)).folder / checkpoint.FILE
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
            checkpoint.read(path.parent)
    path.write_bytes(whole)
    end = run_pack(base, [job("a", plain(2))], Listener(), 1)["a"]
    assert end.outcome is Outcome.FAILED and "another experiment" in (end.message or "")


def test_running_out_of_memory_halves_the_pack_and_changes_nothing(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds two lanes: the pack of four shrinks, and every run gives its solo losses."""
    from lora_lab.engine import pack as pack_module

    base = bases("llama-tied-gqa")
    real = pack_module.token_losses

    def small(mount: object, parts: list[object]) -> object:
        result = real(mount, parts)  # type: ignore[arg-type]
        if len(parts) > 2:
            raise torch.OutOfMemoryError("device is full")
        return result

    specs = {n: plain(i) for i, n in enumerate("abcd")}
    alone = Listener()
    run_pack(base, [job(n, s, "solo") for n, s in specs.items()], alone, 1)
    monkeypatch.setattr(pack_module, "token_losses", small)
    listener = Listener()
    ends = run_pack(base, [job(n, s, "packed") for n, s in specs.items()], listener, 4)
    for name in specs:
        assert ends[name].outcome is Outcome.COMPLETED
        torch.testing.assert_close(
            torch.tensor(listener.losses(name)), torch.tensor(alone.losses(name)), rtol=1e-9, atol=0
        )


def test_an_evaluation_without_memory_for_all_lanes_is_done_in_parts(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is taken again for it: losses and held-out losses are those of each lane alone."""
    from lora_lab.engine import pack as pack_module

    base = bases("llama-tied-gqa")
    real = pack_module.evaluate

    def small(mount: object, candidates: list[object]) -> object:
        if len(candidates) > 1:
            raise torch.OutOfMemoryError("device is full")
        return real(mount, candidates)  # type: ignore[arg-type]

    specs = {n: plain(i) for i, n in enumerate("abc")}
    alone, listener = Listener(), Listener()
    run_pack(base, [job(n, s, "solo") for n, s in specs.items()], alone, 1)
    monkeypatch.setattr(pack_module, "evaluate", small)
    run_pack(base, [job(n, s, "packed") for n, s in specs.items()], listener, 3)
    for name in specs:
        for mine, other in ((listener.losses(name), alone.losses(name)), held_out(listener, alone, name)):
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(other), rtol=1e-9, atol=0)


def held_out(one: Listener, other: Listener, run: str) -> tuple[list[float], list[float]]:
    """The held-out losses two listeners heard of a run, step by step."""
    assert [m.step for m in one.evaluations[run]] == [m.step for m in other.evaluations[run]]
    return [m.loss for m in one.evaluations[run]], [m.loss for m in other.evaluations[run]]
