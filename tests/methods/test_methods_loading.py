"""Adapters from elsewhere: stock PEFT's as PEFT means them; torn, foreign and dangerous ones refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from reference_forward import logits
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lora_lab.errors import CheckpointError, LoraLabError, MethodError
from lora_lab.methods import attach, load
from lora_lab.models import BaseModel
from lora_lab.spec import ROLES, MethodSpec

Base = Callable[..., BaseModel]
IDS = torch.tensor([[5, 6, 7, 250], [9, 10, 11, 12]])


def stock(model: Any, config: Any) -> Any:
    """A stock adapter with values in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = get_peft_model(model, config)
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_" in name and "ranknum" not in name and "magnitude" not in name:
            nn.init.normal_(parameter, std=0.2)
    return made


def shown(base: BaseModel, attachment: Any) -> torch.Tensor:
    with torch.no_grad():
        return logits(base, attachment, IDS).clone()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear", "r": 4, "use_rslora": True},
        {"target_modules": r".*\.1\..*(q|v)_proj", "r": 4, "lora_alpha": 3, "use_dora": True},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"0.+q_proj": 5}},
    ],
)
def test_every_pattern_of_a_stock_adapter_means_what_it_means_in_peft(
    options: dict[str, Any], tiny_base: Base, tmp_path: Path
) -> None:
    theirs = stock(tiny_base().model, LoraConfig(task_type="CAUSAL_LM", **options))
    theirs.save_pretrained(str(tmp_path))
    base = tiny_base()
    attachment = load(tmp_path, base)
    with torch.no_grad():
        expected = theirs(IDS).logits
    assert torch.allclose(shown(base, attachment), expected, atol=1e-5)
    assert not torch.allclose(shown(base, None), expected, atol=1e-2)
    assert all(parameter.requires_grad for parameter in attachment.parameters().values())


def test_adalora_goes_the_way_of_stock_peft(tiny_base: Base) -> None:
    """Ten steps of the same plain loop on the same batch: the same ranks are taken away, the same values are left."""
    total, spec = 10, MethodSpec("adalora", r=2, init_r=4, alpha=4, initial_share=0.1, final_share=0.3)
    base = tiny_base()
    mine = attach(base, spec, 7)
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "v_proj"],
        target_r=2,
        init_r=4,
        lora_alpha=4,
        total_step=total,
        tinit=1,
        tfinal=3,
    )
    torch.manual_seed(7)
    theirs = get_peft_model(tiny_base().model, config)
    named = {name.replace(".default", ""): p for name, p in theirs.named_parameters() if p.requires_grad}
    assert named.keys() == mine.parameters().keys()
    optimizers = [torch.optim.Adam(ps, lr=0.05) for ps in (list(mine.parameters().values()), list(named.values()))]
    for step in range(total):
        loss = nn.functional.cross_entropy(logits(base, mine, IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        penalty = mine.penalty()
        assert penalty is not None
        (loss + penalty).backward()
        stock_loss = theirs(input_ids=IDS, labels=IDS).loss
        stock_loss.backward()
        assert (loss + penalty).item() == pytest.approx(stock_loss.item(), rel=1e-4)
        for optimizer in optimizers:
            optimizer.step()
        mine.after_step(step, total)
        theirs.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
    kept = {n: p for n, p in mine.parameters().items() if n.endswith("lora_E")}
    assert sum(int((p != 0).sum()) for p in kept.values()) == 2 * len(kept)
    for name, parameter in mine.parameters().items():
        assert torch.allclose(parameter, named[name], atol=1e-3), name


def test_a_fully_tuned_model_is_a_transformers_folder_with_its_head_tied_again(tiny_base: Base, tmp_path: Path) -> None:
    base = tiny_base("tied")
    attachment = attach(base, MethodSpec("full"), 0)
    assert attachment.count == base.total_parameters
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.add_(0.01)
    attachment.save(tmp_path, base_name="tied")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, shown(base, attachment), atol=1e-5)


def test_bases_of_eight_bits_and_fused_matrices(tiny_base: Base, tmp_path: Path) -> None:
    for kind in ("int8", "phi3"):
        base = tiny_base(kind)
        for spec in (
            MethodSpec(r=2, roles=("query", "key", "value", "mlp"), init="pissa", dora=True),
            MethodSpec("ia3", roles=("query", "key", "value", "mlp")),
            MethodSpec("bottleneck", placement="parallel"),
        ):
            attachment = attach(base, spec, 0)
            assert torch.allclose(shown(base, attachment), shown(base, None), atol=1e-4)
            assert attachment.save(tmp_path / kind / spec.name, base_name=kind)
            again = load(tmp_path / kind / spec.name, base)
            assert torch.allclose(shown(base, again), shown(base, attachment), atol=1e-4)


def saved(base: BaseModel, folder: Path, **fields: Any) -> Path:
    attach(base, MethodSpec(**fields), 0).save(folder, base_name="x")
    return folder


def test_files_that_cannot_be_used_are_refused_by_name(tiny_base: Base, tmp_path: Path) -> None:
    base = tiny_base()
    weights, config = "adapter_model.safetensors", "adapter_config.json"

    def refused(folder: Path, kind: type[LoraLabError], said: str, on: BaseModel = base) -> None:
        with pytest.raises(kind, match=said):
            load(folder, on)

    refused(tmp_path / "nothing", CheckpointError, "no adapter is here")

    pickled = saved(base, tmp_path / "pickle", r=2)
    (pickled / weights).rename(pickled / "adapter_model.bin")
    refused(pickled, MethodError, r"adapter_model.bin is a pickle.*safetensors")

    torn = saved(base, tmp_path / "torn", r=2)
    (torn / weights).write_bytes((torn / weights).read_bytes()[:-9])
    refused(torn, CheckpointError, "not a whole safetensors file")

    half = saved(base, tmp_path / "half", r=2)
    (half / config).write_text((half / config).read_text()[:40])
    refused(half, CheckpointError, "torn or not JSON")

    own = saved(base, tmp_path / "own", name="bottleneck", r=2)
    tree = json.loads((own / "lora_lab_method.json").read_text())
    (own / "lora_lab_method.json").write_text(json.dumps(tree | {"method": tree["method"] | {"r": 3}}))
    refused(own, CheckpointError, "shape")
    (own / "lora_lab_method.json").write_text(json.dumps(tree | {"method": {"nmae": "lora"}}))
    refused(own, CheckpointError, "did you mean")

    fewer = saved(base, tmp_path / "fewer", r=2)
    tensors = load_file(fewer / weights)
    dropped = tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file(tensors, fewer / weights)
    refused(fewer, CheckpointError, "1 tensors are missing or fit nothing")
    save_file(tensors | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": dropped}, fewer / weights)
    refused(fewer, CheckpointError, "2 tensors are missing or fit nothing")
    refused(saved(tiny_base("tied"), tmp_path / "wider", r=2), CheckpointError, "size mismatch")
    refused(saved(tiny_base("gpt2"), tmp_path / "other", r=2, roles=ROLES[:3]), CheckpointError, "was trained on")

    for changes, said in (
        ({"peft_type": "OFT"}, "no method of lora-lab"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"bias": "all"}, "bias is set"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    ):
        folder = saved(base, tmp_path / said.split()[0], r=2)
        tree = json.loads((folder / config).read_text())
        (folder / config).write_text(json.dumps(tree | changes))
        refused(folder, MethodError, said)


def test_dropout_is_the_generators_and_evaluation_has_none(tiny_base: Base) -> None:
    base, x = tiny_base(), torch.randn(5, 32)
    for spec in (MethodSpec("vera", r=4, dropout=0.5, d_initial=1.0), MethodSpec("bottleneck", r=4, dropout=0.5)):
        path = next(iter(attach(base, spec, 0).paths.values()))
        with torch.no_grad():
            for parameter in path.parameters().values():
                parameter.normal_()
        y = torch.randn(5, next(iter(path.parameters().values())).shape[-1])
        draws = [path.after(x, y, seed) for seed in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
        assert torch.equal(path.after(x, y), path.after(x, y, None))


def test_eva_needs_enough_data(tiny_base: Base) -> None:
    base, spec = tiny_base(), MethodSpec(r=8, init="eva", calibration_sequences=1)
    with pytest.raises(MethodError, match="needs training data"):
        attach(base, spec, 0)
    with pytest.raises(MethodError, match="has 4 tokens, too few for rank 8"):
        attach(base, spec, 0, lambda n: [IDS[0].numpy()] * n)
    with pytest.raises(MethodError, match="has no 40 directions"):
        attach(base, MethodSpec(r=40, init="pissa"), 0)
