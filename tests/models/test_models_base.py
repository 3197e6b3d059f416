"""Loading: frozen, untied, the same in every dtype, silent; the byte tokenizer; every refusal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lora_lab.errors import ModelError
from lora_lab.models import check, load, load_meta, load_tokenizer, total_parameters, untie
from lora_lab.models.tokenizer import BYTE_VOCABULARY
from lora_lab.spec import ModelSpec, pairs

Tiny = Callable[..., ModelSpec]


@pytest.fixture
def saved(tiny: Tiny, tmp_path: Path) -> Path:
    """A tied tiny Llama with its tokenizer, as save_pretrained leaves it."""
    from transformers import AutoConfig

    folder = tmp_path / "saved"
    torch.manual_seed(0)
    fields = dict(tiny().config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    model.save_pretrained(folder)
    load_tokenizer(tiny()).save_pretrained(folder)
    return folder


def test_importing_the_room_loads_no_torch() -> None:
    code = "import sys, lora_lab.models, lora_lab.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(tiny: Tiny) -> None:
    base = load(tiny())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module.training for module in base.model.modules())
    assert base.device == torch.device("cpu")
    assert base.model.config._attn_implementation == "eager"


def test_a_tied_head_is_untied_and_still_computes_the_same(saved: Path) -> None:
    base = load(ModelSpec("saved", path=str(saved), dtype="float32"))
    stock = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager").eval()
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    head, embeddings = base.model.lm_head.weight, base.model.model.embed_tokens.weight
    assert torch.equal(head, embeddings)
    assert head.data_ptr() != embeddings.data_ptr()
    assert base.model.config.tie_word_embeddings is False
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, stock(ids).logits)
        embeddings.add_(1.0)
        assert not torch.equal(head, embeddings)
    assert base.total_parameters == stock.num_parameters()


def test_an_untied_model_saved_and_loaded_again_stays_untied(saved: Path, tmp_path: Path) -> None:
    base = load(ModelSpec("saved", path=str(saved), dtype="float32"))
    with torch.no_grad():
        base.model.lm_head.weight.mul_(2)
    base.model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again.lm_head.weight, 2 * again.model.embed_tokens.weight)


def test_untie_says_whether_there_was_anything_to_untie(tiny: Tiny) -> None:
    model: PreTrainedModel = load(tiny()).model
    assert untie(model) is False
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_one_init_seed_is_one_model_in_every_dtype(tiny: Tiny) -> None:
    models = {dtype: load(tiny(dtype=dtype)).model for dtype in ("float32", "bfloat16", "float64")}
    for name, parameter in models["float32"].named_parameters():
        assert torch.equal(models["bfloat16"].get_parameter(name), parameter.bfloat16())
        assert torch.equal(models["float64"].get_parameter(name), parameter.double())
    assert all(model.model.rotary_emb.inv_freq.dtype == torch.float32 for model in models.values())
    other = load(tiny(init_seed=1)).model
    assert not torch.equal(other.lm_head.weight, models["float32"].lm_head.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_saved_weights_load_in_every_dtype_and_run(saved: Path, dtype: str) -> None:
    model = load(ModelSpec("saved", path=str(saved), dtype=dtype)).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7]])).logits.dtype == getattr(torch, dtype)


def test_loading_leaves_the_random_state_alone(tiny: Tiny) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load(tiny())
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_says_nothing_on_the_terminal(saved: Path) -> None:
    code = f"""
from lora_lab.models import check, load
from lora_lab.spec import ModelSpec
spec = ModelSpec("saved", path={str(saved)!r}, dtype="float32")
check(spec, [("query", "head")])
load(spec)
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_meta_model_has_the_shapes_and_dtypes_of_the_loaded_one(tiny: Tiny) -> None:
    meta, model = load_meta(tiny(dtype="bfloat16")), load(tiny(dtype="bfloat16")).model
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
    assert [(n, p.shape, p.dtype, p.requires_grad) for n, p in meta.named_parameters()] == [
        (n, p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()
    ]
    assert total_parameters(meta) == total_parameters(model)
    assert meta.config.tie_word_embeddings is False
    assert load_meta(tiny(), device="cuda").config._attn_implementation == "sdpa"


def test_a_meta_model_needs_only_the_config_it_is_given() -> None:
    llama = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    spec = ModelSpec("llama2_7b", path="meta-llama/Llama-2-7b-hf", config=pairs(llama))
    assert total_parameters(load_meta(spec)) == 6_738_415_616


def test_the_byte_tokenizer_reads_bytes_and_keeps_its_special_tokens(tiny: Tiny) -> None:
    tokenizer = load_tokenizer(tiny())
    text = "Grüße, 世界!\n\ttab"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == BYTE_VOCABULARY == 261
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257, 258)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(chat)[0] == 259
    model = load(tiny()).model
    assert (model.config.pad_token_id, model.generation_config.eos_token_id) == (256, 258)


def test_a_tokenizer_without_pad_token_is_refused_and_mended_by_name(saved: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec("saved", path=str(saved)))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(saved)
    spec = ModelSpec("saved", path=str(saved))
    for judge in (load_tokenizer, lambda s: check(s, [])):
        with pytest.raises(ModelError, match=r"no pad token.*model\.pad_token='<eos>'"):
            judge(spec)
    mended = ModelSpec("saved", path=str(saved), pad_token="<eos>")
    check(mended, [("query",)])
    assert load_tokenizer(mended).pad_token_id == 258
    with pytest.raises(ModelError, match=r"model.pad_token='<nope>' is not a token .*'<eos>'"):
        check(ModelSpec("saved", path=str(saved), pad_token="<nope>"), [])
    tokenizer.eos_token = None
    tokenizer.save_pretrained(saved)
    with pytest.raises(ModelError, match=r"no end-of-text token either.*model\.pad_token=TOKEN"):
        check(spec, [])


def test_paths_that_lead_nowhere_are_refused(tmp_path: Path, saved: Path) -> None:
    def refused(path: Path | str, match: str) -> None:
        with pytest.raises(ModelError, match=match):
            check(ModelSpec("m", path=str(path)), [])

    refused("./nowhere", r"model.path=./nowhere: no such folder\. Give an existing folder, or a hub id")
    refused(tmp_path / "nowhere", "no such folder")
    refused("a b", "no such folder")
    refused("a/b/c", "no such folder")
    refused(tmp_path, r"has no config\.json\. Give a folder written by save_pretrained")
    (saved / "model.safetensors").rename(saved / "elsewhere")
    refused(saved, r"no weights \(\*\.safetensors\)")
    (saved / "elsewhere").rename(saved / "model.safetensors")
    (saved / "config.json").write_text('{"model_type": ')
    refused(saved, r"cannot be loaded: .* Check that the folder is complete")
    (saved / "config.json").write_text('{"model_type": "lama"}')
    refused(saved, r"cannot be loaded: .*lama")


def test_a_hub_id_without_a_network_is_refused_with_what_works_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"model.path=nobody/nothing: cannot be loaded: .*model=smollm2_135m"):
        check(ModelSpec("m", path="nobody/nothing"), [])


def test_torn_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"cannot be loaded: .* Check that the folder is complete"):
        load(ModelSpec("saved", path=str(saved)))


def test_configs_of_random_models_are_read_strictly(tiny: Tiny) -> None:
    def refused(match: str, **changes: object) -> None:
        config = dict(tiny().config) | changes
        with pytest.raises(ModelError, match=match):
            check(tiny({k: v for k, v in config.items() if v is not None}), [])

    refused(r"model\.config: model_type is missing.*model\.config\.model_type=llama", model_type=None)
    refused(r"cannot be loaded: .*lama", model_type="lama")
    refused(r"model\.config\.hiden_size: llama has no such field; did you mean 'hidden_size'\?", hiden_size=8)
    refused(r"vocab_size=100: .*needs 261 or more.*model\.config\.vocab_size=320", vocab_size=100)
    refused(r"model\.config of tiny: cannot be loaded: .*Correct model\.config", hidden_size="wide")


def test_devices_that_are_not_there_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match=r"device=gpu: not a device\. Use cpu, cuda or cuda:N"):
        load(tiny(), "gpu")
    with pytest.raises(ModelError, match=r"device=cuda:99: this machine shows \d+ CUDA devices.*device=cpu"):
        load(tiny(), "cuda:99")
