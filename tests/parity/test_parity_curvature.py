"""Sophia's Hessian passes against the packed engine's own losses and gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from parity.lanes import SHAPES, Listener, run_pack, tiny
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lora_lab.engine import curvature
from lora_lab.engine.cost import Flops
from lora_lab.engine.lane import Lane, LaneJob
from lora_lab.methods import Attachment, RowPath, attach
from lora_lab.models import BaseModel
from lora_lab.packing import curvature as passes
from lora_lab.packing.forward import Part, losses_of, token_losses
from lora_lab.packing.inputs import Inputs, Sequences
from lora_lab.packing.paths import Mount
from lora_lab.spec import BudgetSpec, DataSpec, MethodSpec, OptimizerSpec, Outcome, RunSpec

SINGLE = {"llama-tied-gqa", "gemma2-softcap-window"}
"""Their code computes norms, and Gemma's also its softmax, in float32 also where the model is in float64."""
DATA = DataSpec(train_size=20, eval_size=6, max_length=64)


@pytest.fixture
def case(bases: Callable[..., BaseModel], tokens: Callable[..., object]) -> Callable[[str], tuple]:
    """A base, an adapter on every role whose B is not zero, and a batch of two micro-batches."""

    def make(shape: str) -> tuple[BaseModel, Attachment, list[Sequences]]:
        base = bases(shape)
        attachment = attach(base, MethodSpec(r=2, roles=tuple(base.roles), alpha=8.0), 0)
        for name, p in attachment.parameters().items():
            if "lora_B" in name:
                p.data.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        train = tokens(DATA).train  # type: ignore[attr-defined]
        return base, attachment, [[train.tokens(i) for i in range(3)], [train.tokens(3)]]

    return make


def packed_gradient(
    base: BaseModel, attachment: Attachment, batch: list[Sequences], labels: Tensor | None = None
) -> list[Tensor]:
    """Of the mean loss, by the packed step; of other ``labels`` than the data's where given."""
    everything = [sequence for micro in batch for sequence in micro]
    inputs = Inputs.of([everything], base.device)
    if labels is not None:
        inputs = dataclasses.replace(inputs, labels=labels)
    mount = Mount(base)
    mount.mount(attachment)
    (found,) = losses_of(mount, [Part(attachment, everything)], inputs)
    gradient = torch.autograd.grad(found.losses.mean(), list(attachment.parameters().values()))
    mount.unmount()
    return list(gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pass_has_the_packed_steps_losses(shape: str, case: Callable[[str], tuple]) -> None:
    base, attachment, (micro, _) = case(shape)
    logits, labels = passes.supervised_logits(base, attachment, micro)
    mine = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    mount = Mount(base)
    mount.mount(attachment)
    (theirs,) = token_losses(mount, [Part(attachment, micro)])
    mount.unmount()
    torch.testing.assert_close(mine, theirs.losses, rtol=1e-7 if shape in SINGLE else 1e-9, atol=1e-12)


class Scaled(RowPath):
    """A path that changes what its module is given and what it gives."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {}

    def before(self, x: Tensor) -> Tensor:
        return 1.5 * x

    def after(self, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        return torch.tanh(2.0 * y) + x.mean(-1, keepdim=True)


@pytest.mark.parametrize("what", ["paths", "prompt", "solo"])
def test_the_pass_takes_every_kind_of_attachment(what: str, case: Callable[[str], tuple]) -> None:
    base, attachment, (micro, _) = case("gpt2-fused")
    if what == "paths":
        attachment.paths |= {"transformer.h.0.mlp.c_fc": Scaled(), "transformer.h.1.ln_1": Scaled()}
    elif what == "prompt":
        attachment.prompt = lambda: torch.linspace(-1, 1, 96, dtype=torch.float64).view(3, 32)
    else:
        attachment.solo = lambda ids, mask: base.model(input_ids=ids, attention_mask=mask).logits ** 3
    plain, _ = passes.supervised_logits(base, dataclasses.replace(attachment, paths={}, prompt=None, solo=None), micro)
    logits, labels = passes.supervised_logits(base, attachment, micro)
    assert not torch.allclose(logits, plain)
    mount = Mount(base)
    mount.mount(attachment)
    (theirs,) = token_losses(mount, [Part(attachment, micro)])
    mount.unmount()
    mine = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(mine, theirs.losses, rtol=1e-9, atol=1e-12)


METHODS = {
    "dora": MethodSpec(r=2, dora=True),
    "pissa": MethodSpec(r=2, init="pissa"),
    "adalora": MethodSpec("adalora", r=2),
    "vera": MethodSpec("vera", r=8),
    "ia3": MethodSpec("ia3", roles=("key", "value", "mlp")),
    "bottleneck": MethodSpec("bottleneck", r=4),
    "bitfit": MethodSpec("bitfit", add_biases=True),
    "last_layers": MethodSpec("last_layers", top_layers=1),
    "prompt_tuning": MethodSpec("prompt_tuning", virtual_tokens=3),
    "prefix_tuning": MethodSpec("prefix_tuning", virtual_tokens=3),
    "full": MethodSpec("full"),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_pass_is_the_packed_steps_under_every_method(
    method: str, bases: Callable[..., BaseModel], tokens: Callable[..., object]
) -> None:
    """And it can be differentiated twice, with something to find."""
    base, train = bases("llama-tied-gqa"), tokens(DATA).train  # type: ignore[attr-defined]
    micro = [train.tokens(i) for i in range(3)]
    attachment = attach(base, METHODS[method], 0)
    for number, p in enumerate(attachment.parameters().values()):
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number), dtype=p.dtype)
    logits, labels = passes.supervised_logits(base, attachment, micro)
    mine = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    mount = Mount(base)
    mount.mount(attachment)
    (theirs,) = token_losses(mount, [Part(attachment, micro)])
    mount.unmount()
    torch.testing.assert_close(mine, theirs.losses, rtol=1e-6, atol=1e-12)
    for how in (curvature.hutchinson, curvature.gauss_newton_bartlett):
        found = how(base, attachment, [micro], torch.Generator().manual_seed(0))
        assert all(bool(h.isfinite().all()) for h in found) and any(bool(h.abs().sum() > 0) for h in found)


@pytest.mark.parametrize("shape", SHAPES)
def test_hutchinsons_product_is_the_hessians(shape: str, case: Callable[[str], tuple]) -> None:
    """Against a central difference of the packed step's gradient along the same probe, in float64."""
    base, attachment, batch = case(shape)
    found = curvature.hutchinson(base, attachment, batch, torch.Generator().manual_seed(7))
    generator, parameters = torch.Generator().manual_seed(7), list(attachment.parameters().values())
    probes = [torch.empty_like(p).normal_(generator=generator) for p in parameters]
    sides = []
    for sign in (1.0, -1.0):
        for p, u in zip(parameters, probes, strict=True):
            p.data.add_(u, alpha=sign * 1e-5)
        sides.append(packed_gradient(base, attachment, batch))
        for p, u in zip(parameters, probes, strict=True):
            p.data.sub_(u, alpha=sign * 1e-5)
    for mine, up, down, u in zip(found, *sides, probes, strict=True):
        wanted = u * (up - down) / 2e-5
        assert wanted.abs().max() > 1e-6
        assert (mine - wanted).norm() < (2e-3 if shape in SINGLE else 1e-6) * wanted.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_gauss_newton_bartlett_is_that_of_the_drawn_labels(shape: str, case: Callable[[str], tuple]) -> None:
    base, attachment, batch = case(shape)
    found = curvature.gauss_newton_bartlett(base, attachment, batch, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    drawn = [passes.draw(passes.supervised_logits(base, attachment, m)[0], generator) for m in batch]
    labels = torch.cat(drawn)
    true = torch.cat([passes.supervised_logits(base, attachment, m)[1] for m in batch])
    assert (labels != true).double().mean() > 0.5, "labels come from the model, not from the data"
    for mine, gradient in zip(found, packed_gradient(base, attachment, batch, labels), strict=True):
        wanted = len(labels) * gradient**2
        assert (mine - wanted).norm() < (1e-5 if shape in SINGLE else 1e-9) * wanted.norm()


def test_labels_are_drawn_from_the_models_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(20_000, 4)
    shares = torch.bincount(passes.draw(logits, generator)) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), rtol=0, atol=0.015)
    assert len(passes.draw(torch.full((3, 4), math.nan), generator)) == 3


def sophia(name: str, steps: int = 5, **fields: object) -> RunSpec:
    return RunSpec(
        model=tiny("llama-tied-gqa"),
        data=DATA,
        method=MethodSpec(r=4, dropout=0.1),
        optimizer=OptimizerSpec(name, lr=1e-3, hessian_every=4, **fields),  # type: ignore[arg-type]
        budget=BudgetSpec(steps=steps, batch_size=4, micro_batch_size=3),
        seed=3,
    )


@pytest.mark.parametrize(("name", "passes"), [("sophiag", 1), ("sophiah", 2)])
def test_its_cost_is_the_lanes(
    name: str,
    passes: int,
    bases: Callable[..., BaseModel],
    job: Callable[..., LaneJob],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two estimates in five steps: as many FLOPs more than AdamW's five as was really computed, and the seconds."""
    base = bases("llama-tied-gqa")
    clock = iter(range(0, 10**6, 100))
    real = curvature.estimate

    def slow(*args: object) -> None:
        monkeypatch.setattr(curvature.time, "monotonic", lambda: next(clock))
        real(*args)  # type: ignore[arg-type]
        monkeypatch.undo()
        monkeypatch.setattr(curvature, "estimate", slow)

    monkeypatch.setattr(curvature, "estimate", slow)
    lane = run_pack(base, [job(name, sophia(name))], Listener(), 1)[name].lane
    plain = run_pack(base, [job("adamw", sophia("adamw"))], Listener(), 1)["adamw"].lane
    assert lane is not None and plain is not None
    assert 200 <= lane.seconds < 300, "two estimates of 100 s each by this clock"
    assert lane.optimizer is not None
    for p in lane.parameters:
        assert lane.optimizer.state[p]["hessian"].abs().sum() > 0, "the estimates must have arrived"
    fresh = Lane(job("fresh", sophia(name)), base)
    batches = []
    for step in (0, 4):
        fresh.step = step
        batches += list(fresh.micro_batches())
    flops = Flops(base)
    training = sum(flops.training(micro, fresh.attachment) for micro in batches)
    assert lane.flops - plain.flops == pytest.approx(passes * training)


@pytest.mark.parametrize("name", ["sophiag", "sophiah"])
def test_its_flops_are_about_what_is_computed(
    name: str, bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    base = bases("llama-tied-gqa")
    lane = Lane(job(name, sophia(name)), base)
    with FlopCounterMode(display=False) as counter:
        curvature.estimate(base, lane, Flops(base))
    assert lane.flops == pytest.approx(counter.get_total_flops(), rel=0.3)


def test_an_estimate_that_is_not_finite_ends_the_lane_alone(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = curvature.hutchinson

    def broken(
        base: BaseModel, attachment: Attachment, batch: list[Sequences], generator: torch.Generator
    ) -> list[Tensor]:
        return [math.inf * h for h in real(base, attachment, batch, generator)]

    base = bases("llama-tied-gqa")
    alone, packed = Listener(), Listener()
    run_pack(base, [job("calm", sophia("sophiag"), "alone")], alone, 1)
    monkeypatch.setattr(curvature, "hutchinson", broken)
    ends = run_pack(base, [job("wild", sophia("sophiah")), job("calm", sophia("sophiag"))], packed, 2)
    assert (ends["wild"].outcome, ends["calm"].outcome) == (Outcome.DIVERGED, Outcome.COMPLETED)
    assert packed.losses("wild") == [] and "at step 1" in (ends["wild"].message or "")
    torch.testing.assert_close(
        torch.tensor(packed.losses("calm")), torch.tensor(alone.losses("calm")), rtol=1e-9, atol=0
    )


def test_an_estimate_without_memory_shrinks_the_pack_and_changes_nothing(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has moved when it is made, so the step is taken again with fewer lanes, from the same random states."""
    base = bases("llama-tied-gqa")
    alone, packed = Listener(), Listener()
    jobs = {"a": sophia("sophiag"), "b": sophia("sophiah")}
    run_pack(base, [job(n, s, "alone") for n, s in jobs.items()], alone, 1)
    real, calls = curvature.estimate, []

    def full(base: BaseModel, lane: Lane, flops: Flops) -> None:
        calls.append(lane.run)
        real(base, lane, flops)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("device is full")

    monkeypatch.setattr(curvature, "estimate", full)
    ends = run_pack(base, [job(n, s) for n, s in jobs.items()], packed, 2)
    assert {end.outcome for end in ends.values()} == {Outcome.COMPLETED} and len(calls) == 6
    for name in jobs:
        torch.testing.assert_close(
            torch.tensor(packed.losses(name)), torch.tensor(alone.losses(name)), rtol=1e-9, atol=0
        )
