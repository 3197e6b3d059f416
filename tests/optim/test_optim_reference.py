"""Each optimizer against its reference over 20 steps: a library that others wrote, or the paper's algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import bitsandbytes
import pytest
import pytorch_optimizer
import torch
import transformers
from torch import Tensor, nn

from lora_lab.optim.optimizers import BUILDERS, build, evaluating, finish, set_rate
from lora_lab.optim.sophia import Sophia
from lora_lab.spec import OptimizerSpec
from lora_lab.spec.optimizer import OPTIMIZERS

SHAPES = {
    "layers.0.q.lora_A.weight": (4, 24),
    "layers.0.q.lora_B.weight": (16, 4),
    "layers.1.q.lora_A.weight": (4, 24),
    "layers.1.q.bias": (16,),
}
RATES = [0.02 * (1 + step % 3) for step in range(20)]
FULL_RATES = [1.0 - 0.2 * (step % 3) for step in range(20)]
"""For Prodigy, which finds the rest of the rate itself."""
Parameters = dict[str, nn.Parameter]


def start(shapes: dict[str, tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64) -> Parameters:
    generator = torch.Generator().manual_seed(1)
    return {
        n: nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for n, s in shapes.items()
    }


def steps(parameters: Parameters, rates: list[float] = RATES) -> Iterator[float]:
    """Gradients that depend on where the parameters are, and a rate that changes."""
    generator = torch.Generator().manual_seed(2)
    for rate in rates:
        for p in parameters.values():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad = 0.3 * noise.to(p.dtype) + p.detach()
        yield rate


def mine(spec: OptimizerSpec, parameters: Parameters, rates: list[float] = RATES) -> torch.optim.Optimizer:
    optimizer = build(spec, parameters)
    for rate in steps(parameters, rates):
        set_rate(optimizer, rate)
        optimizer.step()
    return optimizer


def theirs(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], parameters: Parameters, rates: list[float] = RATES
) -> None:
    optimizer = make(list(parameters.values()))
    for rate in steps(parameters, rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


def same(a: Parameters, b: Parameters, tolerance: float = 1e-12) -> None:
    for name in a:
        assert not torch.equal(a[name], start()[name]), "it must have moved"
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_every_optimizer_has_its_line() -> None:
    assert set(BUILDERS) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        (
            OptimizerSpec("adamw", weight_decay=0.2, beta1=0.8, beta2=0.95, eps=1e-6),
            lambda p: torch.optim.AdamW(p, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False),
        ),
        (
            OptimizerSpec("sgd", weight_decay=0.2, momentum=0.9),
            lambda p: torch.optim.SGD(p, weight_decay=0.2, momentum=0.9, foreach=False, fused=False),
        ),
        (
            OptimizerSpec("sgd", momentum=0.9, nesterov=True, weight_decay=0.0),
            lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, foreach=False, fused=False),
        ),
        (
            OptimizerSpec("sgd", nesterov=True, weight_decay=0.0),
            lambda p: torch.optim.SGD(p, foreach=False, fused=False),
        ),
        (
            OptimizerSpec("adafactor", weight_decay=0.1),
            lambda p: transformers.Adafactor(p, lr=1.0, relative_step=False, weight_decay=0.1),
        ),
        (
            OptimizerSpec("adafactor", weight_decay=0.0, scale_parameter=False, clip_threshold=0.5, decay_rate=-0.6),
            lambda p: transformers.Adafactor(
                p, lr=1.0, relative_step=False, scale_parameter=False, clip_threshold=0.5, decay_rate=-0.6
            ),
        ),
    ],
    ids=lambda value: value.name if isinstance(value, OptimizerSpec) else "",
)
def test_it_is_the_stock_optimizer(spec: OptimizerSpec, make: Callable[..., torch.optim.Optimizer]) -> None:
    ours, reference = start(), start()
    mine(spec, ours)
    theirs(make, reference)
    same(ours, reference)


def test_lion_is_its_papers() -> None:
    """Algorithm 2 of arXiv:2302.06675."""
    ours, reference = start(), start()
    mine(OptimizerSpec("lion", weight_decay=0.1, beta1=0.85), ours)
    momenta = {n: torch.zeros_like(p) for n, p in reference.items()}
    for rate in steps(reference):
        for name, p in reference.items():
            assert p.grad is not None
            update = (0.85 * momenta[name] + 0.15 * p.grad).sign()
            p.data -= rate * (update + 0.1 * p.data)
            momenta[name] = 0.99 * momenta[name] + 0.01 * p.grad
    same(ours, reference)


def test_adamw8bit_is_bitsandbytes_own_and_close_to_adamw() -> None:
    """Averages of 4,096 entries and more have 8 bits, and nothing else."""
    shapes = {"layers.0.q.lora_A.weight": (8, 640), "layers.0.q.lora_B.weight": (16, 8)}
    ours, reference, whole = (start(shapes, torch.float32) for _ in range(3))
    optimizer = mine(OptimizerSpec("adamw8bit", weight_decay=0.1), ours)
    theirs(lambda p: bitsandbytes.optim.AdamW8bit(p, weight_decay=0.1), reference)
    mine(OptimizerSpec("adamw", weight_decay=0.1), whole)
    A, B = shapes
    for name in shapes:
        assert torch.equal(ours[name], reference[name])
    assert optimizer.state[ours[A]]["state1"].dtype == torch.uint8
    torch.testing.assert_close(ours[B], whole[B], rtol=1e-4, atol=1e-5)
    moved = (whole[A] - start(shapes, torch.float32)[A]).norm()
    assert 0 < (ours[A] - whole[A]).norm() < 0.05 * moved


@pytest.mark.parametrize("name", ["sophiag", "sophiah"])
def test_sophia_is_its_papers_and_pytorch_optimizers(name: str) -> None:
    """Algorithm 3 of arXiv:2305.14342, given the same estimates; with ``p = rho`` and ``lr / rho`` it is SophiaH."""
    spec = OptimizerSpec(name, weight_decay=0.1, rho=0.3, hessian_every=4)
    ours, paper, library = start(), start(), start()
    optimizer = build(spec, ours)
    assert isinstance(optimizer, Sophia) and (optimizer.every, optimizer.gauss_newton) == (4, name == "sophiag")
    other = pytorch_optimizer.SophiaH(
        list(library.values()), betas=(0.965, 0.99), p=0.3, weight_decay=0.1 * 0.3, update_period=4
    )
    m, h = ({n: torch.zeros_like(p) for n, p in paper.items()} for _ in range(2))
    probes, clipped = torch.Generator().manual_seed(3), []
    for step, (rate, _, _) in enumerate(zip(steps(ours), steps(paper), steps(library), strict=True)):
        estimates = None
        if step % 4 == 0:
            estimates = {n: torch.randn(p.shape, generator=probes, dtype=p.dtype) * 200 for n, p in ours.items()}
            optimizer.observe({ours[n]: estimate for n, estimate in estimates.items()})
        set_rate(optimizer, rate)
        optimizer.step()
        other.param_groups[0]["lr"] = rate / 0.3
        other.step(hessian=None if estimates is None else [e.clone() for e in estimates.values()])
        for n, p in paper.items():
            assert p.grad is not None
            m[n] = 0.965 * m[n] + 0.035 * p.grad
            if estimates is not None:
                h[n] = 0.99 * h[n] + 0.01 * estimates[n]
            ratio = m[n] / torch.maximum(0.3 * h[n], torch.tensor(1e-12))
            clipped.append((ratio.abs() > 1).double().mean())
            p.data -= rate * 0.1 * p.data
            p.data -= rate * ratio.clamp(-1, 1)
    assert 0.1 < float(torch.stack(clipped).mean()) < 0.9, "some entries are clipped, and some are not"
    same(ours, paper)
    same(ours, library)


@pytest.mark.parametrize("options", [{}, {"bias_correction": True}, {"safeguard_warmup": True, "d_coef": 2.0}])
def test_prodigy_is_pytorch_optimizers(options: dict[str, object]) -> None:
    """Which keeps its sums in float32."""
    ours, reference = start(), start()
    spec = OptimizerSpec("prodigy", weight_decay=0.01, d0=1e-3, **options)  # type: ignore[arg-type]
    optimizer = mine(spec, ours, FULL_RATES)
    theirs(lambda p: pytorch_optimizer.Prodigy(p, weight_decay=0.01, d0=1e-3, **options), reference, FULL_RATES)
    assert float(optimizer.param_groups[0]["d"]) > 1e-2, "the estimate must have grown"
    same(ours, reference, 1e-5)


def test_prodigys_groups_train_parameters_of_another_scale() -> None:
    """With LoRA+ of ratio c it is Prodigy with one rate on B / c, whose gradient is c times as large."""
    ours, scaled = start(), start()
    B, ratio = "layers.0.q.lora_B.weight", 4.0
    optimizer = build(OptimizerSpec("prodigy", weight_decay=0.0, d0=1e-3, lora_plus_ratio=ratio), ours)
    scaled[B].data /= ratio
    other = pytorch_optimizer.Prodigy(list(scaled.values()), d0=1e-3)
    for rate, _ in zip(steps(ours, FULL_RATES), steps(scaled, FULL_RATES), strict=True):
        assert ours[B].grad is not None
        scaled[B].grad = ratio * ours[B].grad.clone()
        set_rate(optimizer, rate)
        other.param_groups[0]["lr"] = rate
        optimizer.step()
        other.step()
    scaled[B].data *= ratio
    same(ours, scaled, 1e-5)


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_on_matrices_and_adamw_on_the_rest(adjust_lr: str, nesterov: bool) -> None:
    """Newton-Schulz has bfloat16's 8 bits in both, and equal shapes are multiplied together here."""
    ours, reference = start(), start()
    spec = OptimizerSpec("muon", weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr=adjust_lr, beta2=0.95)
    mine(spec, ours)
    flat = reference["layers.1.q.bias"]
    matrices = [p for p in reference.values() if p.ndim == 2]
    muon = torch.optim.Muon(matrices, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn=adjust_lr)
    adamw = torch.optim.AdamW([flat], weight_decay=0.1, betas=(0.9, 0.95))
    for rate in steps(reference):
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    torch.testing.assert_close(ours["layers.1.q.bias"], flat, rtol=1e-10, atol=1e-10)
    for name in SHAPES:
        moved = (reference[name] - start()[name]).norm()
        assert (ours[name] - reference[name]).norm() < 0.01 * moved, name


def test_muons_update_has_singular_values_near_one() -> None:
    """Whatever the gradient's: the quintic brings them into about 0.7 to 1.2 (Keller Jordan, 2024)."""
    shape = {"layers.0.q.lora_A.weight": (8, 64)}
    parameters = start(shape)
    before = parameters["layers.0.q.lora_A.weight"].detach().clone()
    mine(OptimizerSpec("muon", weight_decay=0.0, adjust_lr="original"), parameters, rates=[1.0])
    values = torch.linalg.svdvals(parameters["layers.0.q.lora_A.weight"].detach() - before)
    assert 0.5 < float(values.min()) < float(values.max()) < 1.3


def schedulefree(parameters: Parameters, rates: list[float]) -> dict[str, Tensor]:
    """AdamW-ScheduleFree of arXiv:2405.15682, as its authors' code computes it; gives the averages ``x``."""
    z, x = ({n: p.detach().clone() for n, p in parameters.items()} for _ in range(2))
    v = {n: torch.zeros_like(p) for n, p in parameters.items()}
    largest = total = 0.0
    for t, rate in enumerate(steps(parameters, rates), 1):
        largest = max(largest, rate)
        total += largest**2
        for n, y in parameters.items():
            assert y.grad is not None
            v[n] = 0.999 * v[n] + 0.001 * y.grad**2
            direction = y.grad / ((v[n] / (1 - 0.999**t)).sqrt() + 1e-8) + 0.1 * y.data
            z[n] = z[n] - rate * direction
            x[n] = x[n] + largest**2 / total * (z[n] - x[n])
            y.data = 0.1 * z[n] + 0.9 * x[n]
    return x


def test_schedulefree_adamw_is_its_papers_and_shows_its_average() -> None:
    ours, reference = start(), start()
    optimizer = mine(OptimizerSpec("schedulefree_adamw", weight_decay=0.1), ours)
    averages = schedulefree(reference, RATES)
    same(ours, reference, 1e-9)
    training = {n: p.detach().clone() for n, p in ours.items()}
    with evaluating(optimizer):
        with evaluating(optimizer):
            pass
        for name, p in ours.items():
            assert not torch.allclose(p, training[name], rtol=1e-3)
            torch.testing.assert_close(p.detach(), averages[name], rtol=1e-9, atol=1e-9)
    for name, p in ours.items():
        assert torch.equal(p, training[name]), "looking at it changes no bit of the training"
    finish(optimizer)
    for name, p in ours.items():
        torch.testing.assert_close(p.detach(), averages[name], rtol=1e-9, atol=1e-9)


def test_looking_changes_nothing_for_the_others() -> None:
    ours = start()
    optimizer = mine(OptimizerSpec("adamw"), ours)
    before = {n: p.detach().clone() for n, p in ours.items()}
    with evaluating(optimizer), evaluating(None):
        assert all(torch.equal(p, before[n]) for n, p in ours.items())
    finish(optimizer)
    assert all(torch.equal(p, before[n]) for n, p in ours.items())
    assert math.isclose(optimizer.param_groups[0]["lr"], RATES[-1])
