"""A merged model computes what base and adapter compute, for every architecture and every mergeable option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.shapes import CONFIGS, model_spec

from lora_lab.adapters.merging import merge
from lora_lab.adapters.verifying import TOLERANCE, logits, verify
from lora_lab.models.roles import TABLE

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "rslora": {"r": 4, "rslora": True},
    "dora": {"r": 4, "dora": True},
    "pissa": {"r": 4, "init": "pissa"},
    "olora": {"r": 4, "init": "olora"},
    "orthogonal": {"r": 4, "init": "orthogonal"},
    "ranks": {"r": 4, "rank_shape": "linear", "r_last": 2, "rank_pattern": {"lm_head": 3}, "alpha_over_r": 1.5},
    "bfloat16": {"r": 4, "dtype": "bfloat16"},
    "adalora": {"name": "adalora", "r": 2, "init_r": 4},
    "vera": {"name": "vera", "r": 8},
    "ia3": {"name": "ia3"},
    "last_layers": {"name": "last_layers", "top_layers": 1},
    "full": {"name": "full"},
}
"""Every option of a method that is a change of weights."""


def test_there_is_a_model_for_every_architecture_of_the_table() -> None:
    assert CONFIGS.keys() == TABLE.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", TABLE)
def test_every_architecture(kind: str, dtype: str, saved: Callable[..., Any], tmp_path: Path) -> None:
    reference, _, _ = saved(model_spec(kind, dtype=dtype), r=4)
    merged = merge(reference, tmp_path / "out")
    found = verify(reference, tmp_path / "out", dtype)
    assert merged.update > 0.01
    assert found.difference <= TOLERANCE[dtype]
    assert found.difference < merged.update / 5, "the adapter is in it"


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_option(kind: str, option: str, saved: Callable[..., Any], tmp_path: Path) -> None:
    method = dict(OPTIONS[option])
    if "rank_pattern" in method:
        from lora_lab.spec import pairs

        method["rank_pattern"] = pairs(method["rank_pattern"])
    reference, attachment, base = saved(model_spec(kind), **method)
    merge(reference, tmp_path / "out")
    found = verify(reference, tmp_path / "out", "float32")
    ids = torch.arange(24).view(1, 24)
    moved = (logits(base, attachment, ids) - logits(base, None, ids)).norm() / logits(base, None, ids).norm()
    assert found.difference <= TOLERANCE["float32"]
    assert moved > 50 * TOLERANCE["float32"]
