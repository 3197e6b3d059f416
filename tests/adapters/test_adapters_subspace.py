"""Subspaces: known overlaps, known ranks, and what random matrices give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from adapters.shapes import model_spec

from lora_lab.adapters.ranks import as_yaml, suggest_ranks
from lora_lab.adapters.subspace import Update, amplification, apart, compare_adapters, phi, random_phi
from lora_lab.methods import LowRank, attach
from lora_lab.spec import MethodSpec, pairs


def basis(d: int, r: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64))[0]


def update(left: torch.Tensor, values: list[float], right: torch.Tensor, scaling: float = 1.0) -> Update:
    A = torch.nn.Parameter(right.T.float())
    B = torch.nn.Parameter((left * torch.tensor(values, dtype=torch.float64) / scaling).float())
    return Update.of(LowRank(A, B, scaling))


def test_phi_is_the_papers_formula_on_bases_of_the_wide_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(4, 24, generator=generator), torch.randn(6, 24, generator=generator)
    U = torch.linalg.svd(one.double(), full_matrices=False).Vh.T
    V = torch.linalg.svd(other.double(), full_matrices=False).Vh.T
    parts = [LowRank(torch.nn.Parameter(A), torch.nn.Parameter(torch.ones(8, len(A))), 1.0) for A in (one, other)]
    found = phi(*(Update.of(part).A_basis for part in parts))
    for i in range(1, 5):
        for j in range(1, 7):
            expected = float((U[:, :i].T @ V[:, :j]).norm() ** 2) / min(i, j)
            assert found[i - 1, j - 1] == pytest.approx(expected, rel=1e-5)


def test_phi_is_one_for_the_same_space_and_zero_for_orthogonal_ones() -> None:
    U = basis(32, 8, 1)
    mixed = U[:, :4] @ basis(4, 4, 2)
    assert phi(U[:, :4], mixed)[-1, -1] == pytest.approx(1.0)
    assert phi(U[:, :4], U[:, 4:]).max() == pytest.approx(0.0, abs=1e-12)


def test_random_matrices_overlap_by_the_larger_rank_over_the_width() -> None:
    found = random_phi(64, 4, 8, draws=400)
    i, j = np.arange(1, 5)[:, None], np.arange(1, 9)[None]
    np.testing.assert_allclose(found, np.maximum(i, j) / 64, rtol=0.2)


def test_rank_spectrum_and_distance_are_those_of_the_product() -> None:
    left, right = basis(20, 5, 3), basis(12, 5, 4)
    values = [8.0, 4.0, 1.0, 0.1, 0.0]
    found = update(left, values, right, scaling=2.0)
    torch.testing.assert_close(found.values, torch.tensor(values, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert found.rank_at(0.9) == 2
    assert found.rank_at(0.5) == 1
    shares = np.array([v for v in values if v]) / sum(values)
    assert found.effective_rank == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())), rel=1e-4)
    assert found.stable_rank == pytest.approx(sum(v * v for v in values) / 64, rel=1e-5)


def test_ranks_beyond_the_module_are_compared_by_their_product() -> None:
    generator = torch.Generator().manual_seed(9)
    shapes = ((16, 4), (16, 40))  # of factors: ranks 4 and 40 of a module with 32 inputs and 16 outputs
    factors = [
        LowRank(*(torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((r, 32), (d, r))), 1.0)
        for d, r in shapes
    ]
    one, other = (Update.of(factor) for factor in factors)
    products = [(B @ A).detach().double().flatten() for A, B in (factor.product() for factor in factors)]
    found = apart(one, other)
    assert found["cosine"] == pytest.approx(float(torch.cosine_similarity(*products, dim=0)), rel=1e-5)
    assert found["distance"] == pytest.approx(float((products[0] - products[1]).norm()), rel=1e-5)
    assert len(other.values) == 16


def test_amplification_is_that_of_the_papers_table() -> None:
    left, right = basis(20, 2, 5), basis(12, 2, 6)
    W = 0.5 * left @ right.T + 3 * basis(20, 1, 7) @ basis(12, 1, 8).T
    found = update(left, [4.0, 3.0], right)
    inside = float((found.left[:, :2].T @ W @ found.right[:, :2]).norm())
    size, factor = amplification(found, W)
    assert size == pytest.approx(inside)
    assert factor == pytest.approx(5.0 / inside, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_are_compared_by_role_and_layer(kind: str, saved: Callable[..., Any]) -> None:
    one, attachment, base = saved(model_spec(kind), "one", seed=1, r=4, size=0.5)
    same = type(one)("same", one.folder, one.model)
    other = saved(model_spec(kind), "other", seed=2, r=2, size=0.5)[0]
    found = compare_adapters([one, same, other])
    assert set(found.modules["module"]) == set(attachment.factors)
    alike = found.pairs[(found.pairs["first"] == "one") & (found.pairs["second"] == "same")]
    np.testing.assert_allclose(alike[["phi_1", "phi_r", "cosine"]], 1.0, rtol=1e-6)
    np.testing.assert_allclose(alike["distance"], 0.0, atol=1e-5)
    name, factor = next(iter(attachment.factors.items()))
    module = base.model.get_submodule(name)
    W = module.weight if isinstance(module, torch.nn.Linear) else module.weight.T
    row = found.modules[(found.modules["module"] == name) & (found.modules["adapter"] == "one")].iloc[0]
    assert row["weight_norm"] == pytest.approx(float(W.norm()), rel=1e-5)
    assert row["norm"] == pytest.approx(float((factor.scaling * factor.B @ factor.A).detach().norm()), rel=1e-5)
    far = found.pairs[(found.pairs["first"] == "one") & (found.pairs["second"] == "other")]
    assert (far["cosine"].abs() < 0.9).all()
    assert found.heat["one", "other", "A"][0].shape == (4, 2)


def test_suggested_ranks_are_a_method_section_that_makes_such_an_adapter(saved: Callable[..., Any]) -> None:
    reference, attachment, base = saved(model_spec("llama"), r=6)
    with torch.no_grad():
        name = "model.layers.0.mlp.up_proj"
        attachment.factors[name].B[:, 1:] = 0
    attachment.save(reference.folder, base_name="tiny")
    ranks = suggest_ranks(compare_adapters([reference], weights=False))
    assert ranks[name] == 1 and max(ranks.values()) > 1
    tree = yaml.safe_load(as_yaml(ranks))["method"]
    again = attach(
        base, MethodSpec(**tree | {"rank_pattern": pairs(tree["rank_pattern"]), "roles": attachment.spec.roles}), 0
    )
    assert {module: factor.rank for module, factor in again.factors.items()} == ranks
