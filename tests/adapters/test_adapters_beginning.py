"""LoRA that begins as a weighted sum of adapters is that sum, at every rank that can hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from adapters.shapes import model_spec

from lora_lab.adapters.combining import combine, distance
from lora_lab.adapters.verifying import logits
from lora_lab.config import compose_run
from lora_lab.errors import MethodError, SpecError
from lora_lab.methods import attach
from lora_lab.spec import MethodSpec, RunSpec, pairs

ROLES = ("query", "value", "mlp")


@pytest.fixture
def two(saved: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """Two adapters of other ranks and masks on one base."""
    one, _, base = saved(model_spec("llama"), "one", seed=1, r=4, alpha=12.0, roles=("query", "value"))
    other = saved(model_spec("llama"), "other", seed=2, r=2, rslora=True, roles=("value", "mlp"))[0]
    return one, other, base


def begun(one: Any, other: Any, **fields: Any) -> MethodSpec:
    adapters = pairs({"one": str(one.folder), "other": str(other.folder)})
    return MethodSpec(init="adapters", adapters=adapters, **({"roles": ROLES, "r": 6} | fields))


@pytest.mark.parametrize("fields", [{}, {"alpha": 3.0}, {"rslora": True, "r": 9}])
def test_it_is_the_exact_sum_where_the_rank_holds_it(two: tuple[Any, Any, Any], fields: dict[str, Any]) -> None:
    one, other, base = two
    spec = begun(one, other, weights=pairs({"one": 0.5, "other": -2.0}), **fields)
    attachment = attach(base, spec, 0)
    exact = combine([one, other], [0.5, -2.0]).attachment
    ids = torch.arange(24).view(2, 12)
    torch.testing.assert_close(logits(base, attachment, ids), logits(base, exact, ids), rtol=1e-5, atol=1e-6)
    assert {factor.rank for factor in attachment.factors.values()} == {spec.r}
    alone = attach(base, replace(spec, weights=pairs({"other": 0.0})), 0)
    whole = combine([one], [1.0]).attachment
    torch.testing.assert_close(logits(base, alone, ids), logits(base, whole, ids), rtol=1e-5, atol=1e-6)


def test_a_lower_rank_gives_the_best_approximation(two: tuple[Any, Any, Any]) -> None:
    one, other, base = two
    attachment = attach(base, begun(one, other, r=3), 0)
    exact = combine([one, other], [1.0, 1.0])
    best = combine([one, other], [1.0, 1.0], "svd", rank=3)
    changed = {name: attachment.factors[name] for name in exact.attachment.factors}
    assert distance(changed, exact.attachment.factors) == pytest.approx(best.error, rel=1e-4)
    assert 0.01 < best.error < 1


def test_other_ways_are_those_of_combine(two: tuple[Any, Any, Any]) -> None:
    one, other, base = two
    attachment = attach(base, begun(one, other, combine="ties_svd", density=0.4, r=6), 0)
    known = combine([one, other], [1.0, 1.0], "ties_svd", density=0.4).attachment.factors
    assert distance({name: attachment.factors[name] for name in known}, known) < 1e-5


def test_what_cannot_begin_so_is_refused(two: tuple[Any, Any, Any], tmp_path: Any, saved: Callable[..., Any]) -> None:
    one, other, base = two
    with pytest.raises(MethodError, match=r"method\.adapters\.other changes 6 modules .*mlp"):
        attach(base, begun(one, other, roles=("query", "value")), 0)
    with pytest.raises(MethodError, match=r"no adapter is in .*nothing, seen from"):
        attach(base, begun(one, replace(other, folder=tmp_path / "nothing")), 0)
    dora = saved(model_spec("llama"), "dora", r=2, dora=True)[0]
    with pytest.raises(MethodError, match="other: DoRA is no low-rank update"):
        attach(base, begun(one, dora), 0)
    for fields, said in [
        ({"adapters": pairs()}, "adapters to begin with go with method.init=adapters"),
        ({"weights": pairs({"ones": 1.0})}, "did you mean 'one'"),
        ({"weights": pairs({"one": "much"})}, "must be a number"),
        ({"density": 0.0}, "above 0 and at most 1"),
        ({"combine": "tias"}, "did you mean 'ties'"),
        ({"dora": True}, "Set method.dora=false"),
    ]:
        with pytest.raises(SpecError, match=said):
            replace(begun(one, other), **fields)


def test_a_key_knows_weights_however_they_are_said(two: tuple[Any, Any, Any]) -> None:
    one, other, _ = two
    run = compose_run(["model=tiny", "budget.steps=0"])

    def key(**fields: Any) -> str:
        return replace(run, method=begun(one, other, **fields)).key

    assert key() == key(weights=pairs({"one": 1.0})) == key(density=0.1) != key(weights=pairs({"one": 0.5}))
    assert key(combine="ties_svd") != key(combine="ties_svd", density=0.1)
    assert run.budget.total_steps(100) == 0
    assert RunSpec.at(run, {"method.init": "adapters", "method.adapters.one": "a", "method.weights.one": 0.2})
