"""Combined adapters: the exact sum is exact, whatever the sets look like; PEFT's ways are PEFT's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.shapes import model_spec
from peft import PeftModel

from lora_lab.adapters.combining import combine, distance, norm
from lora_lab.adapters.verifying import logits
from lora_lab.errors import MethodError, SpecError
from lora_lab.methods import load as load_adapter
from lora_lab.models import load
from lora_lab.spec import pairs

SETS: list[dict[str, Any]] = [
    {"r": 4, "alpha": 8.0, "roles": ("query", "key", "value", "mlp")},
    {"r": 2, "rslora": True, "roles": ("query", "key", "value", "projection", "head")},
    {"r": 3, "rank_pattern": pairs({"layers.1.mlp.up_proj": 5}), "alpha_over_r": 0.5, "roles": ("mlp", "head")},
    {"name": "vera", "r": 4, "roles": ("query", "key", "value")},
    {"name": "adalora", "r": 2, "init_r": 3, "roles": ("projection",)},
]
WEIGHTS = [1.0, -0.5, 2.0, 0.7, 1.3]


def test_the_sum_of_sets_of_other_ranks_alphas_and_masks_is_exact(saved: Callable[..., Any], tmp_path: Path) -> None:
    made = [saved(model_spec("llama", dtype="float64"), f"a{i}", seed=i, **one) for i, one in enumerate(SETS)]
    references = [reference for reference, _, _ in made]
    base = made[0][2]
    found = combine(references, WEIGHTS)
    found.attachment.save(tmp_path / "sum", base_name="tiny")
    loaded = load_adapter(tmp_path / "sum", base)
    for module, weight in ((n, m.weight) for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)):
        expected = torch.zeros_like(weight)
        for w, (_, attachment, _) in zip(WEIGHTS, made, strict=True):
            if module in attachment.factors:
                A, B = attachment.factors[module].product()
                expected += w * attachment.factors[module].scaling * (B @ A).detach()
            elif module in attachment.paths:
                path = attachment.paths[module]
                expected += w * (path.b.unsqueeze(1) * (path.B * path.d) @ path.A).detach()
        got = torch.zeros_like(weight)
        if module in loaded.factors:
            A, B = loaded.factors[module].product()
            got = loaded.factors[module].scaling * (B @ A).detach().to(weight.dtype)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    assert found.error < 1e-6


DROPPING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


@pytest.mark.parametrize("way", ["linear", "cat", "svd", *DROPPING, *(f"{way}_svd" for way in DROPPING)])
@pytest.mark.filterwarnings("ignore:The density")
def test_the_ways_are_those_of_stock_peft(way: str, saved: Callable[..., Any]) -> None:
    references = [
        saved(model_spec("llama"), f"a{i}", seed=i, r=4, alpha=8.0 + i, roles=("query", "value"))[0] for i in (0, 1)
    ]
    density = 1.0 if way.startswith("dare") else 0.6  # what DARE drops is drawn by another generator's state there
    found = combine(references, [1.0, 0.5], way, density=density, seed=3)
    base = load(references[0].model)
    stock = PeftModel.from_pretrained(base.model, str(references[0].folder), adapter_name="one")
    stock.load_adapter(str(references[1].folder), adapter_name="two")
    options = {} if way in ("linear", "cat", "svd") else {"density": density}
    stock.add_weighted_adapter(["one", "two"], [1.0, 0.5], "both", combination_type=way, **options)
    for name, factor in found.attachment.factors.items():
        layer = stock.base_model.model.get_submodule(name)
        mine = factor.scaling * factor.B @ factor.A
        torch.testing.assert_close(mine.detach(), layer.get_delta_weight("both").detach(), rtol=1e-4, atol=1e-6)


def test_dare_drops_a_share_and_scales_the_rest_up_by_its_seed(saved: Callable[..., Any]) -> None:
    reference = saved(model_spec("llama"), r=4, roles=("query", "mlp"))[0]
    whole = combine([reference], [1.0], "linear").attachment.factors
    runs = [combine([reference], [1.0], "dare_linear", density=0.5, seed=seed).attachment.factors for seed in (1, 1, 2)]
    for name, factor in runs[0].items():
        kept = factor.A != 0
        assert 0.2 < float(kept.double().mean()) < 0.8
        torch.testing.assert_close(factor.A[kept], 2 * whole[name].A[kept])
        assert torch.equal(factor.A, runs[1][name].A)
    assert any(not torch.equal(factor.A, runs[2][name].A) for name, factor in runs[0].items())


def test_an_svd_is_the_best_of_its_rank_and_says_its_error(saved: Callable[..., Any]) -> None:
    references = [saved(model_spec("llama"), f"a{i}", seed=i, r=4, roles=("value",))[0] for i in (0, 1)]
    whole, less = combine(references, [1.0, 1.0]), combine(references, [1.0, 1.0], "svd", rank=3)
    kept = lost = 0.0
    for factor in whole.attachment.factors.values():
        S = torch.linalg.svdvals((factor.B @ factor.A).detach().double())
        kept, lost = kept + float(S.square().sum()), lost + float(S[3:].square().sum())
        assert norm(factor) == pytest.approx(float(S.norm()))
    assert less.error == pytest.approx((lost / kept) ** 0.5, rel=1e-4)
    assert less.ranks == (3, 3)
    assert distance(less.attachment.factors, whole.attachment.factors) == pytest.approx(less.error)


def test_a_combination_runs_as_the_sum_of_its_parts(saved: Callable[..., Any], tmp_path: Path) -> None:
    reference, attachment, base = saved(model_spec("gpt2"), r=4)
    combine([reference, reference], [1.5, -0.5]).attachment.save(tmp_path / "same", base_name="tiny")
    ids = torch.arange(20).view(2, 10)
    again = logits(base, load_adapter(tmp_path / "same", base), ids)
    torch.testing.assert_close(again, logits(base, attachment, ids), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_combined_is_refused(saved: Callable[..., Any]) -> None:
    one = saved(model_spec("llama"), "one", r=2)[0]
    dora = saved(model_spec("llama"), "dora", r=2, dora=True)[0]
    wider = saved(model_spec("llama"), "wider", r=4)[0]
    with pytest.raises(MethodError, match="DoRA is no low-rank update"):
        combine([one, dora], [1, 1])
    with pytest.raises(MethodError, match="ranks 2, 4"):
        combine([one, wider], [1, 1], "linear")
    with pytest.raises(SpecError, match="did you mean 'ties'"):
        combine([one, wider], [1, 1], "tias")
    with pytest.raises(SpecError, match="3 for 2 adapters"):
        combine([one, wider], [1, 1, 1])
