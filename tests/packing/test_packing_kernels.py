"""The CPU kernels compute what PyTorch's operations compute, row by row, and a NaN stays in its row."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_lab.methods import LowRank
from lora_lab.models import frozen_weight
from lora_lab.models.quantised import quantise, steady
from lora_lab.packing import native
from lora_lab.packing.cross_entropy import gradients_into, losses_into
from lora_lab.packing.dropout import dropout
from lora_lab.packing.layout import Layout
from lora_lab.packing.narrow import Narrow, Stretch
from lora_lab.packing.norm import add_norm
from lora_lab.packing.self_attention import Heads, self_attention
from lora_lab.packing.swiglu import swiglu
from lora_lab.packing.unpacking import unpacked
from lora_lab.spec import ModelSpec

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    assert native.library() is not None, "these tests need a C++ compiler"


def both(function, *inputs):
    """Outputs and gradients with kernels (``cpu``) and without (``none``), on the same values."""
    found = []
    for kernels in ("cpu", "none"):
        given = [x.detach().clone().requires_grad_() for x in inputs]
        out = function(kernels, *given)
        outs = out if isinstance(out, tuple) else (out,)
        sum((o.float() * (1 + torch.arange(o.numel()).view_as(o) % 7)).sum() for o in outs).backward()
        found.append([*outs, *(x.grad for x in given)])
    return zip(*found, strict=True)


def close(pairs, dtype):
    for mine, theirs in pairs:
        scale = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


class Norm(nn.Module):
    variance_epsilon = 1e-5

    def __init__(self, d, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d).to(dtype), requires_grad=False)

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


@dtypes
@pytest.mark.parametrize("added", [True, False])
def test_norm(dtype, added):
    norm, x = Norm(37, dtype), torch.randn(5, 37).to(dtype)
    if added:
        close(both(lambda k, a, b: add_norm(a, b, norm, k), x, torch.randn(5, 37).to(dtype)), dtype)
    else:
        close(both(lambda k, a: add_norm(a, None, norm, k), x), dtype)


@dtypes
def test_swiglu(dtype):
    close(both(lambda k, x: swiglu(x, k), (3 * torch.randn(6, 2 * 21)).to(dtype)), dtype)


@dtypes
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("length", [7, 150, 700])  # weights kept, made twice, never made
def test_self_attention(dtype, window, length):
    d, kv, groups = 8, 2, 3
    angles = torch.outer(torch.arange(length).float(), torch.tensor([1.0, 0.3, 0.1, 0.01])).repeat(1, 2)
    heads = Heads(kv, groups, d, 0.4, window, angles.cos(), angles.sin())
    lengths = [length, 3, length - 1, 5]

    def attention(kernels, qkv):
        return self_attention(qkv, heads, Layout(lengths, [4], torch.device("cpu"), kernels))

    close(both(attention, torch.randn(sum(lengths), (groups + 2) * kv * d).to(dtype)), dtype)


@dtypes
def test_cross_entropy(dtype):
    logits, labels = (4 * torch.randn(9, 301)).to(dtype), torch.randint(301, (9,))
    labels[:4] = logits[:4].argmax(-1)
    logits[2, :2], labels[2] = 50.0, 1  # equal to the first largest, but not the first
    found = []
    for kernels in ("cpu", "none"):
        losses, normalisers, hits = torch.empty(9), torch.empty(9), torch.empty(9, dtype=torch.bool)
        losses_into(logits, labels, losses, normalisers, hits, kernels)
        out = torch.empty_like(logits)
        gradients_into(logits, labels, normalisers, torch.arange(9.0), out, kernels)
        found.append((losses, hits.float(), out))
    close(zip(*found, strict=True), dtype)
    assert found[0][1].tolist() == [1, 1, 0, 1, 0, 0, 0, 0, 0]


@dtypes
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_low_rank_paths(dtype, p):
    """Two lanes of several ranks at two modules, with rows that are nobody's before, between and after them."""
    spans, columns, ranks = ((2, 70), (75, 5)), ((0, 33), (33, 48)), (1, 5, 12, 8)
    x, y = torch.randn(83, 40).to(dtype), torch.randn(83, 81).to(dtype)
    dy, dx = torch.randn(83, 81).to(dtype), torch.randn(83, 40).to(dtype)
    low = [
        LowRank(nn.Parameter(torch.randn(r, 40)), nn.Parameter(torch.randn(columns[i % 2][1], r)), 0.5 + i)
        for i, r in enumerate(ranks)
    ]
    stretches = [
        Stretch(low[i].A, low[i].B, low[i].scaling, *spans[i // 2], columns[i % 2][0], p, 11 * i) for i in range(4)
    ]
    narrow = Narrow(stretches)
    mine = y.clone()
    saved = narrow.add(x, mine)
    dmine = dx.clone()
    grads = narrow.back(x, dy, dmine, *saved)
    wide, total = x.float().requires_grad_(), y.float()
    for s in stretches:
        rows = wide[s.start : s.start + s.rows]
        if p:
            rows = rows * dropout(torch.ones_like(rows), p, s.seed, "none")
        delta = rows @ s.A.t() @ s.B.t() * s.scaling
        total = total + nn.functional.pad(delta, (s.column, 81 - s.column - len(s.B), s.start, 83 - s.start - s.rows))
    total.backward(dy.float())
    assert wide.grad is not None
    close([(mine.float(), total.detach()), (dmine.float(), dx.float() + wide.grad)], dtype)
    close(zip(grads, [f.grad for f in narrow.factors], strict=True), torch.float32)
    outside = [0, 1, 72, 73, 74, 80, 81, 82]
    assert torch.equal(mine[outside], y[outside]) and torch.equal(dmine[outside], dx[outside])


@dtypes
def test_noise_is_the_same_with_and_without_kernels(dtype):
    x = torch.randn(123, 45).to(dtype)
    assert torch.equal(dropout(x, 0.2, 7, "cpu"), dropout(x, 0.2, 7, "none"))


def test_noise_is_fair_and_its_own_in_every_module():
    ones = torch.ones(400, 500)
    masks = torch.stack([dropout(ones, 0.25, seed, "cpu").flatten() != 0 for seed in (0, 1, 2, 99, 2**31)]).float()
    deviation = (0.25 * 0.75 / 200_000) ** 0.5
    assert (masks.mean(1) - 0.75).abs().max() < 4 * deviation
    correlations = torch.corrcoef(masks) - torch.eye(5)
    assert correlations.abs().max() < 5 / 200_000**0.5
    rows = masks[0].view(400, 500)
    neighbours = torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))[0, 1]
    assert neighbours.abs() < 5 / 200_000**0.5


def test_a_nan_stays_in_its_row():
    x = torch.randn(6, 32).bfloat16()
    x[2, 5] = float("nan")
    others = [0, 1, 3, 4, 5]
    norm = Norm(32, torch.bfloat16)
    for out in (add_norm(x, x, norm, "cpu")[1], swiglu(x, "cpu")):
        assert out[2].isnan().any() and out[others].isfinite().all()
    losses, normalisers, hits = torch.empty(6), torch.empty(6), torch.empty(6, dtype=torch.bool)
    losses_into(x, torch.zeros(6, dtype=torch.int64), losses, normalisers, hits, "cpu")
    assert losses[2].isnan() and losses[others].isfinite().all()
    x[2, 5] = float("inf")
    losses_into(x, torch.zeros(6, dtype=torch.int64), losses, normalisers, hits, "cpu")
    assert not losses[2].isfinite() and losses[others].isfinite().all()


class Pair(nn.Module):
    """What ``quantise`` asks of a model."""

    def __init__(self, inputs, one, other):
        super().__init__()
        self.first, self.second = nn.Linear(inputs, one, bias=False), nn.Linear(inputs, other, bias=False)
        self.config = SimpleNamespace()

    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize(
    ("kind", "double"), [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False), ("int8", False)]
)
@pytest.mark.parametrize("columns", [37, 32, 96, 64])
@dtypes
def test_quantised_weights_are_unpacked_to_the_bit(kind, double, dtype, columns):
    """Two modules side by side, in whose rows blocks end where they like, and the last one is not full."""
    precision = str(dtype).removeprefix("torch.")
    about = (("model_type", "llama"),)
    spec = ModelSpec(
        name="pair", source="random", config=about, dtype=precision, quantization=kind, double_quant=double
    )
    net = Pair(columns, 151, 60).to(dtype)
    before = torch.cat([net.first.weight, net.second.weight]).detach().float()
    quantise(net, spec)
    steady(net, spec)
    modules = [net.first, net.second]
    mine = unpacked(modules, [(0, 151), (151, 211)], "cpu")
    theirs = torch.cat([frozen_weight(module) for module in modules])
    assert mine.dtype == dtype
    assert torch.equal(mine, theirs)
    assert (mine.float() - before).abs().mean() < 0.13 * before.abs().mean(), "the numbers are those before"
