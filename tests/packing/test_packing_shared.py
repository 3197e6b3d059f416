"""Weights of a base model on a CPU: in memory once for all processes, merged products and a tied head included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lora_lab.errors import ModelError
from lora_lab.methods import Attachment, attach
from lora_lab.models import cache_folder, load, load_tokenizer
from lora_lab.packing.forward import Part, token_losses
from lora_lab.packing.paths import Mount
from lora_lab.spec import MethodSpec, ModelSpec, pairs

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "tie_word_embeddings": True,
}
MERGED = (
    tuple(f"model.layers.1.self_attn.{part}_proj" for part in "qkv"),
    ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, but for the kernels, which take long to build."""
    kernels, own = cache_folder() / "kernels", tmp_path / "cache"
    kernels.mkdir(parents=True, exist_ok=True)
    own.mkdir()
    (own / "kernels").symlink_to(kernels)
    monkeypatch.setenv("LORA_LAB_CACHE", str(own))
    return own


def saved(folder: Path, kind: str = "llama", seed: int = 0) -> ModelSpec:
    """A model in float32 with its tokenizer, as save_pretrained leaves them; it is used in bfloat16."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CONFIG)).save_pretrained(folder)
    load_tokenizer(ModelSpec("tiny", source="random", config=pairs(CONFIG))).save_pretrained(folder)
    return ModelSpec("saved", path=str(folder))


def losses(mount: Mount) -> Tensor:
    part = Part(Attachment(MethodSpec(roles=()), packable=True), [(np.arange(30), np.ones(30, bool))], noise=0)
    with torch.no_grad():
        return token_losses(mount, [part])[0].losses


def mapping(tensor: Tensor) -> tuple[str, dict[str, int]]:
    """The line of the system's table of mappings that ``tensor`` is in, and what it counts there, in kB."""
    heading, counts, inside = "", {}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            if inside:
                break
            start, _, stop = first.partition("-")
            inside = int(start, 16) <= tensor.data_ptr() < int(stop, 16)
            heading = line
        elif inside and rest[-1] == "kB":
            counts[first[:-1]] = int(rest[0])
    return heading, counts


def used(mount: Mount) -> list[Tensor]:
    """What the products of a forward read: merged matrices, single ones, and the head."""
    matrices = [mount._product(names).weight for names in MERGED]
    return [*matrices, mount._product(("model.layers.1.mlp.down_proj",)).weight, mount.head[1].weight]


def report(path: str) -> None:
    """What a second process does: compute, tell the mappings, and hold them until it is told to end."""
    mount = Mount(load(ModelSpec("saved", path=path)))
    places = [" ".join(mapping(tensor)[0].split()[3:]) for tensor in used(mount)]
    sys.stdout.write("\n".join([repr(losses(mount).double().sum().item()), *places, "done", ""]))
    sys.stdout.flush()
    sys.stdin.read()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system has no table of mappings")
def test_two_processes_hold_merged_weights_once(tmp_path: Path, cache: Path) -> None:
    spec = saved(tmp_path / "model")
    code = f"import test_packing_shared; test_packing_shared.report({spec.path!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None and other.stdin is not None
        mount = Mount(load(spec))
        mine = losses(mount).double().sum().item()
        theirs = [line.strip() for line in iter(other.stdout.readline, "done\n")]
        assert float(theirs[0]) == mine
        for tensor, place in zip(used(mount), theirs[1:], strict=True):
            heading, counts = mapping(tensor)
            assert place.split() == heading.split()[3:], "the same file"
            assert place.endswith(".safetensors") and str(cache) in place
            assert counts["Private_Dirty"] == 0 and counts["Anonymous"] == 0
            assert counts["Pss"] < counts["Rss"], "others hold these pages, too"
        other.stdin.close()
    assert len(list((cache / "shared").glob("*/*.safetensors"))) == 1, "made once"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_shared_weights_compute_what_ones_own_compute(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = saved(tmp_path / "model", kind)
    shared = Mount(load(spec))
    with monkeypatch.context() as patch:
        patch.setattr("lora_lab.models.base.shared_file", lambda spec: None)
        own = Mount(load(spec))
    assert torch.equal(losses(shared), losses(own))
    names = dict(own.model.named_parameters())
    assert all(torch.equal(value, names[name]) for name, value in shared.model.named_parameters())
    places = [module.weight.data_ptr() for module in shared._product(MERGED[0]).modules]
    assert places[0] == shared._product(MERGED[0]).weight.data_ptr()
    shared.unmount()
    assert [shared.model.get_submodule(name).weight.data_ptr() for name in MERGED[0]] == places, "nothing was moved"
    assert torch.equal(losses(shared), losses(own))


def test_what_one_process_writes_or_trains_is_its_own(tmp_path: Path) -> None:
    spec = saved(tmp_path / "model")
    base, other = load(spec), load(spec)
    before = {name: value.clone() for name, value in other.model.named_parameters()}
    full: Any = attach(base, MethodSpec("full"), 0)
    files = {value.untyped_storage().data_ptr() for value in base.model.parameters()}
    for parameter in full.own.values():
        assert parameter.untyped_storage().data_ptr() not in files
        parameter.data.add_(1.0)
    with torch.no_grad():
        for value in base.model.parameters():
            value.add_(1.0)
    assert not torch.equal(base.model.lm_head.weight, other.model.lm_head.weight)
    assert all(torch.equal(value, before[name]) for name, value in other.model.named_parameters())
    again = load(spec).model.named_parameters()
    assert all(torch.equal(value, before[name]) for name, value in again), "the file is as it was"


def test_other_files_and_other_dtypes_are_other_copies(tmp_path: Path, cache: Path) -> None:
    spec = saved(tmp_path / "model")
    first = load(spec).model.lm_head.weight.clone()
    assert not torch.equal(load(saved(tmp_path / "model", seed=1)).model.lm_head.weight, first)
    wide = load(ModelSpec("saved", path=spec.path, dtype="float64")).model
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    assert len(list((cache / "shared").glob("*/*.safetensors"))) == 3


@pytest.mark.parametrize("full", [False, True], ids=["unwritable", "full"])
def test_without_a_cache_weights_are_ones_own_and_that_is_said(
    tmp_path: Path, cache: Path, full: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = saved(tmp_path / "model")
    expected = losses(Mount(load(spec)))
    shutil.rmtree(cache)
    if full:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    else:
        cache.write_text("")
    assert torch.equal(losses(Mount(load(spec))), expected)
    assert "Each process holds weights of its own" in caplog.text and "LORA_LAB_CACHE=FOLDER" in caplog.text
    assert not full or not list((cache / "shared").glob("*/"))


def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, cache: Path) -> None:
    spec = saved(tmp_path / "model")
    load(spec)
    (file,) = (cache / "shared").glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(spec)
