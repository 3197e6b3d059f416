"""SmolLM2-135M itself: a short sweep learns, and its adapter answers in stock transformers and PEFT."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import lora_lab as package

pytestmark = pytest.mark.real_model


def test_a_short_sweep_of_the_real_model_learns(
    tmp_path: Path, lora_lab: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = lora_lab(
        *("sweep", "rank_alpha", "tracking=none", "sweep.space={method.r: {choices: [4, 16]}}", "sweep.repeats=1"),
        *("data.eval_size=26", "evaluation.exact_match_size=26", "budget.steps=8", "evaluation.every_steps=null"),
        *("data.tasks=[comparison,negation,past_tense]", "optimizer.lr=1e-2"),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "rank_alpha"
    frame = package.load_results(folder)
    assert (frame["eval_loss"] < 0.5 * frame["base_eval_loss"]).all(), frame[["eval_loss", "base_eval_loss"]]
    assert (frame["exact_match"] > frame["base_exact_match"]).all()
    # q and v of 30 layers: A is (r, 576), B is (576, r) and (192, r).
    assert list(frame.sort_values("method.r")["trainable_parameters"]) == [
        r * 30 * (576 + 576 + 576 + 192) for r in (4, 16)
    ]
    assert set(frame["total_parameters"]) == {134_515_008}
    row = frame.sort_values("eval_loss").iloc[0]
    assert abs(stock_loss(folder / row["adapter"], folder) - row["eval_loss"]) < 2e-2, "bfloat16, other batches"


def stock_loss(adapter: Path, folder: Path) -> float:
    """Mean held-out loss of the adapter on the stock (tied) model, one example at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_lab import data, models
    from lora_lab.config import compose_sweep

    spec = compose_sweep(str(folder / "config.yaml"), []).sweep.base
    where = models.prepare(spec.model)
    assert where is not None
    base = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, adapter).eval()
    split = data.load(spec.data, AutoTokenizer.from_pretrained(where)).evaluation
    total, count = 0.0, 0
    for i in range(len(split)):
        ids, supervised = split.tokens(i)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(ids)[1:], reduction="none")
        wanted = torch.from_numpy(supervised[1:])
        total += float(losses[wanted].sum())
        count += int(wanted.sum())
    return total / count
