"""Adapters at work: merged in place, timed against the base, scored in weighted sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from adapters.shapes import model_spec

from lora_lab import data
from lora_lab.adapters.in_place import in_place, merged_weights
from lora_lab.adapters.verifying import logits
from lora_lab.bench.combinations import combination_scores
from lora_lab.bench.latency import Variant, measure, summary, verdict
from lora_lab.config import compose_run
from lora_lab.engine.evaluate import Candidate, evaluate
from lora_lab.errors import MethodError
from lora_lab.packing.paths import Mount


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [{"r": 4}, {"r": 4, "dora": True}, {"name": "ia3"}, {"name": "bitfit"}])
def test_a_base_is_merged_in_place_and_is_itself_again(
    kind: str, method: dict[str, Any], saved: Callable[..., Any]
) -> None:
    if method.get("name") == "bitfit":
        method = method | {"add_biases": kind == "llama"}
    _, attachment, base = saved(model_spec(kind), **method)
    ids = torch.arange(24).view(2, 12)
    plain, beside = logits(base, None, ids), logits(base, attachment, ids)
    if method.get("add_biases"):
        with pytest.raises(MethodError, match="has no bias to change"):
            merged_weights(base, attachment, "it")
        return
    with in_place(base, merged_weights(base, attachment, "it")):
        torch.testing.assert_close(logits(base, None, ids), beside, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(base, None, ids), plain)
    assert not torch.allclose(plain, beside, atol=1e-3)


def test_every_variant_is_timed_in_every_round_and_phase(saved: Callable[..., Any]) -> None:
    _, attachment, base = saved(model_spec("llama"), r=2, roles=("value",))
    prompt = saved(model_spec("llama"), "prompt", name="prompt_tuning", virtual_tokens=3)[1]
    variants = [Variant("base"), Variant("beside", attachment), Variant("prompt", prompt)]
    variants.append(Variant("merged", None, merged_weights(base, attachment, "it")))
    found = measure(base, variants, batches=(1, 2), prompt=4, new=2, rounds=2)
    assert len(found) == 2 * 2 * 2 * len(variants)
    assert (found["seconds"] > 0).all()
    assert set(found[found["variant"] == "merged"]["memory"]) == {0}
    assert set(found[found["variant"] == "beside"]["memory"]) == {4 * attachment.count}


def test_a_verdict_follows_the_interval_of_the_ratio() -> None:
    generator, rows = np.random.default_rng(0), []
    for turn in range(15):
        busy = generator.uniform(1, 3)  # the machine's, common to a round
        for variant, factor in (("base", 1.0), ("same", 1.0), ("slow", 1.3), ("fast", 0.7)):
            for phase in ("prefill", "decode"):
                noise = generator.normal(1, 0.01)
                rows.append((turn, variant, 1, phase, busy * factor * noise, 10, 0))
    frame = pd.DataFrame(rows, columns=["round", "variant", "batch", "phase", "seconds", "tokens", "memory"])
    found = summary(frame)
    assert [verdict(found, name) for name in ("same", "slow", "fast")] == ["adds nothing", "slower", "faster"]
    row = found[(found["variant"] == "slow") & (found["phase"] == "decode")].iloc[0]
    assert row["ratio"] == pytest.approx(1.3, rel=0.02)
    assert row["low"] < row["ratio"] < row["high"]


def test_sums_of_adapters_are_scored_task_by_task(saved: Callable[..., Any]) -> None:
    scored = ["evaluation.max_new_tokens=3", "evaluation.exact_match=true"]
    spec = compose_run(["model=tiny", "data.train_size=8", "data.eval_size=12", *scored])
    one, attachment, base = saved(spec.model, "one", seed=1, r=2, size=0.3)
    two = saved(spec.model, "two", seed=2, r=4, size=0.3, roles=("query", "mlp"))[0]
    found = combination_scores(base, [one, two], [{}, {"one": 1.0}, {"one": 0.5, "two": -1.0}], spec)
    split = data.load(spec.data.at_seed(spec.seed), base.tokenizer).evaluation
    mount = Mount(base)
    mount.mount(attachment)
    expected = [m.loss for m in evaluate(mount, [Candidate(a, split, 0, 32) for a in (None, attachment)])]
    mount.unmount()
    whole = found[found["task"] == "all"]
    assert whole["sum"].tolist() == ["base", "1 one", "0.5 one + -1 two"]
    assert whole["eval_loss"].tolist()[:2] == pytest.approx(expected, rel=1e-4)
    assert whole["eval_loss"].nunique() == 3
    assert whole["weight.two"].tolist() == [0.0, 0.0, -1.0]
    assert set(found["task"]) - {"all"} == set(split.tasks)
