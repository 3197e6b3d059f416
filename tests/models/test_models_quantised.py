"""Quantised bases: bit for bit those of transformers, small, kept as they are, made once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from lora_lab.errors import ModelError, SpecError
from lora_lab.models import check, frozen_weight, load, load_tokenizer
from lora_lab.models.quantised import bitsandbytes, constants
from lora_lab.spec import ModelSpec, RunSpec, pairs

Tiny = Callable[..., ModelSpec]

GPT2 = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 320,
    "n_positions": 64,
    "tie_word_embeddings": True,
}
KINDS = [("nf4", False), ("nf4", True), ("fp4", False), ("int8", False)]
STOCK = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, for all but the tests that ask for another."""
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _save(spec: ModelSpec, folder: Path) -> Path:
    """The random model of ``spec`` as save_pretrained leaves it, in bfloat16."""
    base = load(spec)
    base.model.save_pretrained(folder)
    load_tokenizer(spec).save_pretrained(folder)
    return folder


def _linear(model: nn.Module) -> dict[str, Any]:
    library = bitsandbytes()
    kinds = (library.nn.Linear4bit, library.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _stock(folder: Path, kind: str, double: bool, dtype: torch.dtype) -> Any:
    fields: dict[str, Any] = dict(STOCK[kind])
    if fields.get("load_in_4bit"):
        fields |= {"bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": dtype}
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=BitsAndBytesConfig(**fields), attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("config", [None, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_every_source_is_quantised_as_transformers_quantises(
    tiny: Tiny, tmp_path: Path, config: dict[str, Any] | None, kind: str, double: bool
) -> None:
    spec = tiny(config, dtype="bfloat16")
    folder = _save(spec, tmp_path / "saved")
    stock = _stock(folder, kind, double, torch.bfloat16)
    quantised = {"quantization": kind, "double_quant": double}
    ours = [
        load(tiny(config, dtype="bfloat16", **quantised)).model,
        load(ModelSpec("saved", path=str(folder), dtype="bfloat16", **quantised)).model,
        load(ModelSpec("saved", path=str(folder), dtype="bfloat16", **quantised)).model,
    ]
    theirs = _linear(stock)
    assert theirs
    assert "lm_head" not in theirs
    for model in ours:
        found = _linear(model)
        assert list(found) == list(theirs)
        for name, module in found.items():
            assert torch.equal(module.weight.data, theirs[name].weight.data)
            for mine, other in zip(constants(module), constants(theirs[name]), strict=True):
                assert torch.equal(mine, other)
            whole = dequantize_bnb_weight(theirs[name].weight, getattr(theirs[name], "state", None))
            weight = frozen_weight(module)
            assert weight.dtype == torch.bfloat16
            assert weight.shape == (module.out_features, module.in_features)
            assert torch.equal(weight, whole.to(torch.bfloat16))
            if module.bias is not None:
                assert torch.equal(module.bias, theirs[name].bias)
        assert torch.equal(frozen_weight(model.lm_head), stock.get_output_embeddings().weight)
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_weight_is_the_weight_itself_where_nothing_is_quantised(tiny: Tiny) -> None:
    llama, gpt2 = load(tiny()).model, load(tiny(GPT2)).model
    assert frozen_weight(llama.lm_head).data_ptr() == llama.lm_head.weight.data_ptr()
    fused = gpt2.transformer.h[0].attn.c_attn
    x = torch.randn(5, 64)
    assert torch.equal(x @ frozen_weight(fused).t() + fused.bias, fused(x))
    assert frozen_weight(fused).data_ptr() == fused.weight.data_ptr()


@pytest.mark.parametrize(("kind", "double"), KINDS[:3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_evaluating_leaves_quantised_weights_as_they_are(tiny: Tiny, kind: str, double: bool, dtype: str) -> None:
    model = load(tiny(dtype=dtype, quantization=kind, double_quant=double)).model
    modules = _linear(model)
    before = {name: frozen_weight(module) for name, module in modules.items()}
    x = torch.randn(3, 64, dtype=getattr(torch, dtype))
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7]])).logits
        for module in modules.values():
            if module.in_features == 64:
                assert torch.equal(module(x), nn.functional.linear(x, frozen_weight(module)))
    assert logits.isfinite().all()
    for name, module in modules.items():
        assert torch.equal(frozen_weight(module), before[name])


def test_saved_models_are_quantised_once(
    tiny: Tiny, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _save(tiny(dtype="bfloat16"), tmp_path / "saved")
    spec = ModelSpec("saved", path=str(folder), quantization="nf4")
    first = load(spec).model

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("quantised again")

    with monkeypatch.context() as patch:
        patch.setattr(bitsandbytes().functional, "quantize_4bit", refuse)
        again = load(spec).model
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    assert len([f for f in (cache / "quantised").iterdir() if f.is_dir()]) == 1
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    load(spec)
    assert len([f for f in (cache / "quantised").iterdir() if f.is_dir()]) == 2


def test_the_parameters_of_the_original_are_counted(tiny: Tiny) -> None:
    counts = {load(tiny(dtype="bfloat16", quantization=kind)).total_parameters for kind in ("none", "nf4", "int8")}
    assert len(counts) == 1


def test_files_quantised_otherwise_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    made = load(tiny(dtype="bfloat16", quantization="nf4", double_quant=True))
    folder = tmp_path / "small"
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    for judge in (load, lambda spec: check(spec, [])):
        with pytest.raises(ModelError, match=r"saved as nf4 .*model\.quantization=nf4 model\.double_quant=true"):
            judge(ModelSpec("small", path=str(folder)))
    again = load(ModelSpec("small", path=str(folder), quantization="nf4", double_quant=True)).model
    for name, module in _linear(made.model).items():
        assert torch.equal(frozen_weight(again.get_submodule(name)), frozen_weight(module))
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(folder)
    with pytest.raises(ModelError, match="quantised by gptq"):
        check(ModelSpec("small", path=str(folder)), [])


def test_what_cannot_be_is_refused_and_what_cannot_matter_has_no_part_in_the_key(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> None:
    with pytest.raises(SpecError, match=r"model\.dtype=float64\. Set model\.dtype=bfloat16"):
        tiny(dtype="float64", quantization="nf4")
    with pytest.raises(SpecError, match=r"model\.quantization"):
        tiny(quantization="nf5")

    def key(**fields: Any) -> str:
        return RunSpec(model=ModelSpec("m", source="random", config=pairs({"model_type": "llama"}), **fields)).key

    assert key(double_quant=True) == key()
    assert key(quantization="int8", double_quant=True) == key(quantization="int8") != key()
    assert key(quantization="nf4", double_quant=True) != key(quantization="nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"bitsandbytes cannot be used here .*pip install bitsandbytes"):
        check(tiny(quantization="nf4"), [])


@pytest.mark.real_model
def test_the_real_model_takes_half_and_its_linear_maps_a_quarter(smollm: ModelSpec) -> None:
    whole = load(smollm).model
    small = load(ModelSpec(smollm.name, smollm.source, smollm.path, quantization="nf4")).model
    head = 2 * whole.lm_head.weight.numel()  # untied, as adapters need it: 57 MB more than the files
    assert whole.get_memory_footprint() - head == pytest.approx(269e6, rel=0.005)
    assert small.get_memory_footprint() - head == pytest.approx(110e6, rel=0.005)
    linear = sum(2 * m.in_features * m.out_features for m in _linear(small).values())
    held = sum(t.nbytes for m in _linear(small).values() for t in (m.weight, constants(m)[0]))
    assert held / linear == pytest.approx((0.5 + 4 / 64) / 2, rel=1e-3)
