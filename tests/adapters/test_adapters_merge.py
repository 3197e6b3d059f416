"""A merged model computes what base and adapter compute, for every architecture and every mergeable option."""

from __future__ import annotations

import contextlib
import gc
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.shapes import CONFIGS, model_spec
from safetensors.torch import load_file

from lora_lab.adapters import verifying
from lora_lab.adapters.merging import merge
from lora_lab.adapters.unmerging import unmerge
from lora_lab.adapters.verifying import COMPUTED, logits, verify
from lora_lab.errors import MethodError, SpecError, SweepFolderError
from lora_lab.methods import load as load_adapter
from lora_lab.models import frozen_weight, load
from lora_lab.models.loading import loading
from lora_lab.models.roles import TABLE
from lora_lab.spec import MethodSpec, ModelSpec, from_tree, pairs
from lora_lab.spec.method import INITS, METHODS, RANK_SHAPES

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "rslora": {"r": 4, "rslora": True},
    "dora": {"r": 4, "dora": True},
    "gaussian": {"r": 4, "init": "gaussian"},
    "pissa": {"r": 4, "init": "pissa"},
    "pissa-dora": {"r": 3, "init": "pissa", "dora": True},
    "pissa-niter": {"r": 3, "init": "pissa_niter_4", "rslora": True},
    "eva": {"r": 3, "init": "eva", "calibration_sequences": 16},
    "olora": {"r": 4, "init": "olora"},
    "orthogonal": {"r": 4, "init": "orthogonal"},
    "ranks": {"r": 4, "rank_shape": "linear", "r_last": 2, "rank_pattern": {"lm_head": 3}, "alpha_over_r": 1.5},
    "decay": {"r": 6, "rank_shape": "decay", "r_last": 2, "rank_budget": 43, "alpha": 9.0},
    "groups": {"r": 4, "rank_shape": "groups", "rank_groups": (4, 2), "dropout": 0.1},
    "bfloat16": {"r": 4, "dtype": "bfloat16"},
    "adalora": {"name": "adalora", "r": 2, "init_r": 4},
    "vera": {"name": "vera", "r": 8},
    "ia3": {"name": "ia3"},
    "last_layers": {"name": "last_layers", "top_layers": 1},
    "full": {"name": "full"},
}
"""Every option of a method that is a change of weights; LoftQ, biases and combined adapters have their own tests."""
NO_CHANGE = {"bottleneck", "prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2", "llama_adapter"}


def test_there_is_a_model_for_every_architecture_of_the_table() -> None:
    assert CONFIGS.keys() == TABLE.keys()


def test_there_is_a_line_for_every_option() -> None:
    names = {option.get("name", "lora") for option in OPTIONS.values()}
    assert names == METHODS.keys() - NO_CHANGE - {"bitfit"}
    lora = [from_tree(MethodSpec, option) for option in OPTIONS.values() if option.get("name", "lora") == "lora"]
    assert {one.init for one in lora} >= set(INITS) - {"loftq", "adapters"}
    assert {one.rank_shape for one in lora} == set(RANK_SHAPES)
    plain = MethodSpec()
    free = {"r", "alpha", "alpha_over_r", "roles", "layers", "adapters", "weights", "combine", "density"}
    for name in set(METHODS["lora"]) - free:
        assert any(getattr(one, name) != getattr(plain, name) for one in lora), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", TABLE)
def test_every_architecture(kind: str, dtype: str, saved: Callable[..., Any], tmp_path: Path) -> None:
    reference, _, _ = saved(model_spec(kind, dtype=dtype), r=4)
    merged = merge(reference, tmp_path / "out")
    found = verify(reference, tmp_path / "out", dtype)
    assert merged.update > 0.01
    assert found.holds and found.tolerance < 0.05
    assert found.difference < merged.update / 5, "the adapter is in it"


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_option(
    kind: str, option: str, stored: Callable[..., Any], saved: Callable[..., Any], tmp_path: Path
) -> None:
    method = dict(OPTIONS[option])
    if "rank_pattern" in method:
        method["rank_pattern"] = pairs(method["rank_pattern"])
    reference, attachment, base = saved(stored(kind), **method)
    merge(reference, tmp_path / "out")
    found = verify(reference, tmp_path / "out", "float32")
    ids = torch.arange(24).view(1, 24)
    moved = (logits(base, attachment, ids) - logits(base, None, ids)).norm() / logits(base, None, ids).norm()
    assert found.holds and found.tolerance < 2 * COMPUTED[torch.float32]
    assert moved > 50 * COMPUTED[torch.float32]


@pytest.mark.parametrize(
    ("quantization", "init"), [("nf4", "default"), ("nf4", "loftq"), ("fp4", "default"), ("int8", "default")]
)
def test_a_quantised_base_is_merged_as_it_was_trained_on(
    quantization: str, init: str, stored: Callable[..., Any], saved: Callable[..., Any], tmp_path: Path
) -> None:
    model = stored("llama", quantization=quantization, double_quant=quantization == "nf4")
    quantised = {"roles": ("query", "key", "value", "projection", "mlp")} if init == "loftq" else {}
    reference, _, base = saved(model, r=4, init=init, **quantised)
    merged = merge(reference, tmp_path / "out")
    assert merged.streamed
    assert merged.quantisation is not None and 0.001 < merged.quantisation < 0.3
    kept = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    factor = load_adapter(reference.folder, base).factors[name]
    exact = frozen_weight(base.model.get_submodule(name)) + factor.scaling * factor.B @ factor.A
    torch.testing.assert_close(kept[f"{name}.weight"], exact.detach(), rtol=1e-5, atol=1e-6)
    assert verify(reference, tmp_path / "out", "float32").difference < 1e-3
    other = merge(reference, tmp_path / "original", onto="original")
    assert other.quantisation is None
    plain = load_file(Path(model.path) / "model.safetensors")[f"{name}.weight"]
    onto = load_file(tmp_path / "original" / "model.safetensors")[f"{name}.weight"]
    torch.testing.assert_close(onto - plain, (factor.scaling * factor.B @ factor.A).detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
def test_files_are_streamed_to_the_same_tensors_as_a_model_in_memory(
    kind: str, stored: Callable[..., Any], saved: Callable[..., Any], tmp_path: Path
) -> None:
    shards = stored(kind, shard="40KB")
    reference, attachment, _ = saved(shards, r=4)
    merged = merge(reference, tmp_path / "streamed")
    files = sorted((tmp_path / "streamed").glob("*.safetensors"))
    assert merged.streamed and len(files) > 2
    attachment.save(tmp_path / "again", base_name="tiny")
    held = merge(type(reference)("again", tmp_path / "again", model_spec(kind)), tmp_path / "held")
    assert not held.streamed
    one = {name: value for file in files for name, value in load_file(file).items()}
    other = load_file(tmp_path / "held" / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if not name.endswith("bias"))


def test_a_tied_head_is_untied_only_where_it_changes(
    stored: Callable[..., Any], saved: Callable[..., Any], tmp_path: Path
) -> None:
    model = stored("llama")
    for roles, untied in ((("query", "value"), False), (("value", "head"), True)):
        reference, _, _ = saved(model, f"adapter-{untied}", r=4, roles=roles)
        merged = merge(reference, tmp_path / f"out-{untied}")
        config = json.loads((tmp_path / f"out-{untied}" / "config.json").read_text())
        tensors = load_file(tmp_path / f"out-{untied}" / "model.safetensors")
        assert merged.untied == untied == (not config["tie_word_embeddings"]) == ("lm_head.weight" in tensors)
        before = load_file(Path(model.path) / "model.safetensors")["model.embed_tokens.weight"]
        assert torch.equal(tensors["model.embed_tokens.weight"], before)
        assert verify(reference, tmp_path / f"out-{untied}", "float32").holds


def test_verifying_rounds_no_adapter_and_lets_the_base_go_first(
    stored: Callable[..., Any], saved: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters beside a quantised base in bfloat16 stay what they are; DoRA's hold modules of the base."""
    seen: set[torch.dtype] = set()
    bases: list[weakref.ref[Any]] = []

    def look(base: Any, attachment: Any, ids: Any) -> Any:
        seen.update(one.dtype for one in attachment.parameters().values())
        bases.extend(weakref.ref(module) for module in base.model.modules())
        return logits(base, attachment, ids)

    @contextlib.contextmanager
    def load_next(spec: ModelSpec) -> Iterator[None]:
        gc.collect()
        assert all(base() is None for base in bases), "two models at once"
        with loading(spec):
            yield

    monkeypatch.setattr(verifying, "logits", look)
    monkeypatch.setattr("lora_lab.models.loading.loading", load_next)
    reference, _, base = saved(stored("llama", quantization="int8", dtype="bfloat16"), r=4, dora=True)
    merge(reference, tmp_path / "out")
    del base
    assert verify(reference, tmp_path / "out", "bfloat16").holds
    assert bases and seen == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("option", "size", "kept"),
    [("lora", 0.002, "index"), ("lora", 0.2, "whole"), ("dora", 0.2, "whole"), ("last_layers", 1e-4, "index")],
)
def test_undoing_gives_the_base_back_bit_for_bit(
    option: str,
    size: float,
    kept: str,
    dtype: str,
    stored: Callable[..., Any],
    saved: Callable[..., Any],
    tmp_path: Path,
) -> None:
    kind = "gpt2" if option == "last_layers" else "llama"
    model = stored(kind, dtype=dtype, shard="60KB")
    reference, _, _ = saved(model, size=size, **OPTIONS[option])
    merge(reference, tmp_path / "out", reversible=True)
    beside = [load_file(file) for file in (tmp_path / "out" / "unmerge").glob("*.safetensors")]
    assert any(name.endswith(kept) and value.numel() for one in beside for name, value in one.items())
    unmerge(tmp_path / "out", tmp_path / "back")
    before = {k: v for file in Path(model.path).glob("*.safetensors") for k, v in load_file(file).items()}
    after = {k: v for file in (tmp_path / "back").glob("*.safetensors") for k, v in load_file(file).items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ids = torch.arange(16).view(1, 16)
    again = load(type(model)("back", path=str(tmp_path / "back"), dtype=dtype))
    assert torch.equal(logits(again, None, ids), logits(load(model), None, ids))


def test_what_cannot_be_merged_is_refused(saved: Callable[..., Any], tmp_path: Path) -> None:
    for i, (method, said) in enumerate(
        [
            ({"name": "bottleneck"}, "no change of the base model's weights"),
            ({"name": "prompt_tuning", "virtual_tokens": 4}, "no change of the base model's weights"),
            ({"name": "bitfit", "add_biases": True}, "has no place for one"),
        ]
    ):
        reference, _, _ = saved(model_spec("llama"), f"adapter{i}", **method)
        with pytest.raises(MethodError, match=said):
            merge(reference, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    reference, _, _ = saved(model_spec("llama"), r=2)
    with pytest.raises(SpecError, match="cannot hold"):
        merge(reference, tmp_path / "out", dtype="bfloat16", reversible=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(SweepFolderError, match="something is there already"):
        merge(reference, tmp_path / "full")


def test_biases_are_merged_where_the_architecture_has_them(
    stored: Callable[..., Any], saved: Callable[..., Any], tmp_path: Path
) -> None:
    for kind in ("gpt2", "gpt_neox", "phi"):
        roles = ("query", "key", "value", "projection", "mlp")
        reference, _, _ = saved(stored(kind, f"base-{kind}"), f"bias-{kind}", name="bitfit", roles=roles)
        merge(reference, tmp_path / kind)
        assert verify(reference, tmp_path / kind, "float32").holds
