"""The decoder of Llama-like models, laid out for packed rows.

transformers' own layers work on it, too, one small operation after another; here the rows go through the same layers in
fewer, larger steps: one product for query, key and value, one for the MLP's gate and up, and one pass over the rows for
whatever lies between products. A model of another kind keeps its own forward (:mod:`lora_lab.packing.forward`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lora_lab.packing.layout import Layout
from lora_lab.packing.norm import add_norm
from lora_lab.packing.paths import Paths
from lora_lab.packing.phases import layer_begins
from lora_lab.packing.self_attention import Heads, self_attention
from lora_lab.packing.swiglu import swiglu

_KINDS = ("LlamaModel", "MistralModel", "Qwen2Model")
"""Decoders whose layers are a norm, rotary self-attention, a norm and a gated MLP, with sums around."""


def serves(model: PreTrainedModel) -> bool:
    """Whether ``model`` is one of those kinds, with Llama's activation."""
    return type(model.base_model).__name__ in _KINDS and model.config.hidden_act == "silu"


def hidden_states(paths: Paths, embedded: Tensor, layout: Layout, *, recompute: bool = False) -> Tensor:
    """``(rows, d)`` last hidden states of ``embedded (rows, d)``.

    ``recompute`` keeps only the input of each layer for the backward and computes the rest again there.
    """
    decoder: Any = paths.model.base_model
    prefix = f"{paths.model.base_model_prefix}."
    cosine, sine = _rotary(decoder, layout)
    x, delta = embedded, None
    again = paths.again()

    def layer_again(*arguments: Any) -> tuple[Tensor, Tensor]:
        with again():
            return _layer(*arguments)

    for i, layer in enumerate(decoder.layers):
        layer_begins(i, x if delta is None else delta)
        arguments = (paths, f"{prefix}layers.{i}.", layer, x, delta, layout, cosine, sine)
        x, delta = checkpoint(layer_again, *arguments, use_reentrant=False) if recompute else _layer(*arguments)
    assert delta is not None
    layer_begins(len(decoder.layers), delta)
    return add_norm(x, delta, decoder.norm, layout.kernels)[1]


def _rotary(decoder: Any, layout: Layout) -> tuple[Tensor, Tensor]:
    """``(positions, d)`` tables in float32, up to the longest sequence."""
    like = torch.empty(1, dtype=torch.float32, device=layout.device)
    positions = torch.arange(max(layout.lengths), device=layout.device).unsqueeze(0)
    cosine, sine = decoder.rotary_emb(like, positions)
    return cosine[0], sine[0]


def _layer(
    paths: Paths, name: str, layer: Any, x: Tensor, delta: Tensor | None, layout: Layout, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer: ``x + delta`` is what it is given, ``(x', delta')`` what it gives."""
    attention, kernels = layer.self_attn, layout.kernels
    x, y = add_norm(x, delta, layer.input_layernorm, kernels)
    qkv = paths.linear([f"{name}self_attn.{part}_proj" for part in "qkv"], y)
    kv = paths.model.config.num_key_value_heads
    heads = Heads(
        kv=kv,
        groups=paths.model.config.num_attention_heads // kv,
        d=attention.head_dim,
        scaling=attention.scaling,
        window=_window(paths.model.config, attention),
        cosine=cosine,
        sine=sine,
    )
    delta = paths.linear([f"{name}self_attn.o_proj"], self_attention(qkv, heads, layout))
    x, y = add_norm(x, delta, layer.post_attention_layernorm, kernels)
    gate_up = paths.linear([f"{name}mlp.gate_proj", f"{name}mlp.up_proj"], y)
    return x, paths.linear([f"{name}mlp.down_proj"], swiglu(gate_up, kernels))


def _window(config: Any, attention: Any) -> int | None:
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window  # type: ignore[no-any-return]
    return getattr(config, "sliding_window", None)
