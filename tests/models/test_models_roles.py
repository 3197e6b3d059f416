"""Roles: every architecture of the table, fused matrices, modules named by hand, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_lab.errors import ModelError
from lora_lab.models import check, check_mask, load, load_meta, role_modules
from lora_lab.models.roles import TABLE
from lora_lab.spec import ROLES, ModelSpec, all_masks, pairs

_DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 64,
}
_GROUPED = _DECODER | {"num_key_value_heads": 2, "head_dim": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | {"tie_word_embeddings": True},
    "mistral": _GROUPED,
    "qwen2": _DECODER | {"num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": _GROUPED,
    "gemma3_text": _GROUPED,
    "smollm3": _DECODER | {"num_key_value_heads": 2, "pad_token_id": 0},
    "phi": _DECODER | {"num_key_value_heads": 4},
    "phi3": _DECODER | {"num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320},
    "gpt_neox": _DECODER,
}
"""A tiny model of every architecture in the table."""

FUSED = {"phi3", "gpt2", "gpt_neox"}
QUERY_OUT = {"phi3": 32 + 2 * 16, "gpt2": 96, "gpt_neox": 96}
MLPS = {"phi": 2, "phi3": 2, "gpt2": 2, "gpt_neox": 2}


def test_there_is_a_tiny_model_for_every_architecture_of_the_table() -> None:
    assert CONFIGS.keys() == TABLE.keys()


@pytest.mark.parametrize("kind", TABLE)
def test_every_architecture_has_six_roles_on_linear_modules(kind: str, tiny: Callable[..., ModelSpec]) -> None:
    spec = tiny(CONFIGS[kind] | {"model_type": kind}, name=kind)
    base = load(spec)
    assert tuple(base.roles) == ROLES
    for role in ("query", "key", "value", "projection"):
        assert len(base.roles[role]) == 2
    assert len(base.roles["mlp"]) == 2 * MLPS.get(kind, 3)
    assert [base.model.get_submodule(name) for name in base.roles["head"]] == [base.model.get_output_embeddings()]

    query, head = (base.model.get_submodule(base.roles[role][0]) for role in ("query", "head"))
    with torch.no_grad():
        assert query(torch.zeros(1, 1, 32)).shape[-1] == QUERY_OUT.get(kind, 32)
        assert head(torch.zeros(1, 1, 32)).shape[-1] == 320
        logits = base.model(torch.tensor([[1, 2, 3]]), use_cache=False).logits
    assert logits.shape == (1, 3, 320)
    assert torch.isfinite(logits).all()

    assert base.roles == role_modules(load_meta(spec), spec)
    assert (base.roles["query"] == base.roles["key"] == base.roles["value"]) == (kind in FUSED)
    if kind not in FUSED:
        named = [name for names in base.roles.values() for name in names]
        assert len(named) == len(set(named))


@pytest.mark.parametrize("kind", TABLE)
def test_check_accepts_whole_masks_and_refuses_a_part_of_a_fused_matrix(
    kind: str, tiny: Callable[..., ModelSpec]
) -> None:
    spec = tiny(CONFIGS[kind] | {"model_type": kind}, name=kind)
    check(spec, [(), ("mlp", "head"), ("query", "key", "value"), ROLES])
    if kind not in FUSED:
        check(spec, all_masks())
        return
    with pytest.raises(ModelError, match=r"one fused matrix \(.*\), so query cannot .*Choose all of query\+key\+value"):
        check(spec, [("query",)])
    with pytest.raises(ModelError, match=r"method\.roles=value"):
        check_mask(load(spec).roles, ("value",), kind)


_OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 64,
}


def test_an_unknown_architecture_is_refused_with_its_modules_and_how_to_name_them(
    tiny: Callable[..., ModelSpec],
) -> None:
    spec = tiny(_OPT, name="opt")
    with pytest.raises(ModelError) as raised:
        check(spec, [("query",)])
    message = str(raised.value)
    assert "'opt' is not in the roles table (known: llama, mistral" in message
    assert "model.decoder.layers.*.self_attn.q_proj (2x)" in message
    assert "model.roles={query: [q_proj]" in message


def test_modules_named_by_hand_make_an_unknown_architecture_usable(tiny: Callable[..., ModelSpec]) -> None:
    spec = tiny(_OPT, roles=pairs({"query": ["q_proj"], "mlp": ["fc1", "fc2"]}))
    check(spec, [("query", "mlp", "head")])
    assert load(spec).roles == {
        "query": tuple(f"model.decoder.layers.{i}.self_attn.q_proj" for i in (0, 1)),
        "mlp": tuple(f"model.decoder.layers.{i}.{name}" for i in (0, 1) for name in ("fc1", "fc2")),
        "head": ("lm_head",),
    }
    with pytest.raises(ModelError, match=r"no 'value' modules; it has query, mlp, head\..*'model.roles=\{value: "):
        check(spec, [("value",)])


def test_a_role_named_by_hand_replaces_the_table_for_that_role_only(tiny: Callable[..., ModelSpec]) -> None:
    roles = load(tiny(roles=pairs({"mlp": "down_proj"}))).roles
    assert roles["mlp"] == tuple(f"model.layers.{i}.mlp.down_proj" for i in (0, 1))
    assert roles["query"] == tuple(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))


def test_a_name_that_matches_no_linear_module_is_refused(tiny: Callable[..., ModelSpec]) -> None:
    for name in ("qproj", "embed_tokens", "proj"):
        with pytest.raises(ModelError, match=rf"model.roles.query: .*no linear module named '{name}'.*q_proj \(2x\)"):
            check(tiny(roles=pairs({"query": [name]})), [])


def test_roles_that_are_not_lists_of_names_are_refused(tiny: Callable[..., ModelSpec]) -> None:
    for wrong in ([], [1], 3):
        with pytest.raises(ModelError, match=r"model\.roles\.query: expected a list of module names"):
            check(tiny(roles=pairs({"query": wrong})), [])
