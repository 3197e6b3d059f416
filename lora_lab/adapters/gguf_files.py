"""Merged models and adapters as GGUF files, which llama.cpp and its kin run.

Of the Llama-like architectures whose GGUF form is written down in :data:`ARCHITECTURES`; others are refused, and
llama.cpp's own ``convert_hf_to_gguf.py`` takes the merged folder as it takes any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_lab.adapters.hollow import hollow
from lora_lab.adapters.references import Reference
from lora_lab.adapters.weights import Stored
from lora_lab.errors import ModelError, SpecError
from lora_lab.files import folder_errors, read_json
from lora_lab.methods import load as load_adapter
from lora_lab.methods.combining import low_rank
from lora_lab.models import BaseModel
from lora_lab.models.sources import config_of
from lora_lab.spec import ModelSpec


@dataclass(frozen=True)
class Architecture:
    """Its name in GGUF, and whether query and key rows are interleaved there for the rotary embedding."""

    name: str
    interleaved: bool


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", True),
    "mistral": Architecture("llama", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
}
"""By ``config.model_type``."""
PRE_TOKENISERS = {49152: "smollm", 128256: "llama-bpe"}
"""How a byte-level vocabulary is split into words beforehand, by its size; Qwen's is ``qwen2``, others ``default``."""
FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}
"""llama.cpp's number of what most tensors are in."""


def export_model(folder: Path, out: Path) -> int:
    """Write the merged model in ``folder`` (written by :func:`~lora_lab.adapters.merge`) as ``out``; bytes written.

    Weights keep the folder's dtype, norms and biases are float32. One tensor is in memory at a time.

    Raises:
        ModelError: an architecture or a kind of tokenizer that has no GGUF form here.
        SpecError: a file name that does not end in ``.gguf``.
    """
    import gguf

    _check(out)
    config = read_json(folder / "config.json")
    spec = ModelSpec(str(folder), path=str(folder), dtype=_dtype(config))
    shell = hollow(spec)
    kind = _architecture(shell)
    weights = Stored(folder, shell.model, spec)
    names = _names(shell, kind)
    with folder_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f".{out.name}.partial")
        writer = gguf.GGUFWriter(beside, kind.name)
        _describe(writer, shell, folder)
        tensors = [name for shard in weights.shards().values() for name in shard if name in names]
        for name in tensors:
            _plan(writer, names[name], weights.read(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in tensors:
            writer.write_tensor_data(_numbers(_placed(name, weights.read(name), shell, kind))[0])
        writer.close()
        beside.replace(out)
    return out.stat().st_size


def export_adapter(reference: Reference, out: Path) -> int:
    """Write the low-rank adapter of ``reference`` as a GGUF LoRA for ``llama.cpp --lora``; bytes written.

    Scalings are in ``lora_b``, so that ranks may differ; ``adapter.lora.alpha`` is 0, which means a scale of 1.

    Raises:
        ModelError: an architecture that has no GGUF form here.
        MethodError: an adapter that is no low-rank update.
        SpecError: a file name that does not end in ``.gguf``.
    """
    import gguf

    _check(out)
    shell = hollow(reference.model)
    kind = _architecture(shell)
    assert reference.folder is not None, "the base model is no adapter"
    factors = low_rank(load_adapter(reference.folder, shell), reference.name)
    names = _names(shell, kind)
    with folder_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f".{out.name}.partial")
        writer = gguf.GGUFWriter(beside, kind.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
        writer.add_name(reference.name)
        for module, factor in factors.items():
            name = f"{module}.weight"
            B = _placed(name, (factor.scaling * factor.B).detach().float(), shell, kind)
            writer.add_tensor(f"{names[name]}.lora_a", factor.A.detach().float().contiguous().numpy())
            writer.add_tensor(f"{names[name]}.lora_b", B.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        beside.replace(out)
    return out.stat().st_size


def check_gguf(model: ModelSpec, *files: Path | None) -> None:
    """Refuse what cannot be exported, before anything is merged for it.

    Raises:
        ModelError: an architecture that has no GGUF form here.
        SpecError: a file name that does not end in ``.gguf``.
    """
    for file in files:
        if file is not None:
            _check(file)
            _known(str(config_of(model).model_type))


def _check(out: Path) -> None:
    if out.suffix != ".gguf":
        raise SpecError(f"{out}: a GGUF file's name ends in .gguf.")


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _architecture(shell: BaseModel) -> Architecture:
    return _known(str(shell.model.config.model_type))


def _known(kind: str) -> Architecture:
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"GGUF: architecture {kind!r} is not written here; it is known for {', '.join(ARCHITECTURES)}. Merge "
            "without --gguf and give the folder to llama.cpp's convert_hf_to_gguf.py."
        )
    return ARCHITECTURES[kind]


def _names(shell: BaseModel, kind: Architecture) -> dict[str, str]:
    """GGUF's names of the model's tensors."""
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind.name)
    table = gguf.get_tensor_name_map(arch, int(shell.model.config.num_hidden_layers))
    found: dict[str, str] = {}
    for name in shell.model.state_dict():
        mapped = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            raise ModelError(f"GGUF: {name} has no place in a {kind.name} file. Use llama.cpp's convert_hf_to_gguf.py.")
        found[name] = mapped
    return found


def _placed(name: str, tensor: Tensor, shell: BaseModel, kind: Architecture) -> Tensor:
    """Rows of query and key in GGUF's order: the two halves of each head, which transformers keeps apart, in turn."""
    module = name.rpartition(".")[0]
    config = shell.model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.rpartition(".")[2])
    if heads is None or not kind.interleaved:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _numbers(tensor: Tensor) -> tuple[Any, Any]:
    """The array that the writer takes, and GGML's type where numpy has none."""
    import gguf

    if tensor.dim() < 2:
        return tensor.float().contiguous().numpy(), None
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint8).numpy(), gguf.GGMLQuantizationType.BF16
    return (tensor if tensor.dtype != torch.float64 else tensor.float()).contiguous().numpy(), None


def _plan(writer: Any, name: str, tensor: Tensor) -> None:
    array, kind = _numbers(tensor)
    writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes, raw_dtype=kind)


def _describe(writer: Any, shell: BaseModel, folder: Path) -> None:
    """What a reader must know of the model and its tokenizer."""
    config: Any = shell.model.config
    rope = config.rope_parameters if getattr(config, "rope_parameters", None) else {}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(folder.name)
    writer.add_file_type(FILE_TYPES.get(getattr(torch, shell.spec.dtype), 0))
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"GGUF: rotary embeddings of type {rope['rope_type']!r} are not written here. Give the merged folder to "
            "llama.cpp's convert_hf_to_gguf.py."
        )
    _tokenizer(writer, shell, folder)


def _tokenizer(writer: Any, shell: BaseModel, folder: Path) -> None:
    import gguf

    tree = _tokenizer_tree(folder)
    if tree["model"].get("type") != "BPE" or "ByteLevel" not in json.dumps(tree.get("decoder") or {}):
        raise ModelError(
            "GGUF: only byte-level BPE tokenizers are written here. Give the merged folder to llama.cpp's "
            "convert_hf_to_gguf.py."
        )
    added = {token["id"]: token for token in tree.get("added_tokens", [])}
    words = {index: word for word, index in tree["model"]["vocab"].items()} | {
        i: t["content"] for i, t in added.items()
    }
    config: Any = shell.model.config
    tokens, types = [], []
    for index in range(config.vocab_size):
        tokens.append(words.get(index, f"[PAD{index}]"))
        kind = gguf.TokenType.NORMAL if index in words else gguf.TokenType.UNUSED
        if index in added:
            kind = gguf.TokenType.CONTROL if added[index].get("special") else gguf.TokenType.USER_DEFINED
        types.append(kind)
    kind = str(config.model_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if kind.startswith("qwen") else PRE_TOKENISERS.get(config.vocab_size, "default"))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(list(_merges(tree)) or [""])
    for name in ("bos", "eos", "pad", "unk"):
        special = getattr(shell.tokenizer, f"{name}_token_id", None)
        if special is not None:
            getattr(writer, f"add_{name}_token_id")(special)
    if shell.tokenizer.chat_template:
        writer.add_chat_template(shell.tokenizer.chat_template)


def _tokenizer_tree(folder: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = read_json(folder / "tokenizer.json")
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no tokenizer.json, from which a GGUF file's vocabulary is made.") from error
    return tree


def _merges(tree: Mapping[str, Any]) -> Iterator[str]:
    for merge in tree["model"]["merges"]:
        yield merge if isinstance(merge, str) else " ".join(merge)
