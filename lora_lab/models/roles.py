"""Which linear modules play which role, for every architecture lora-lab knows: one table.

A role is ``query key value projection mlp head``; ``projection`` is the output projection of attention, ``mlp``
every linear map of the feed-forward block (gate, up and down), ``head`` the map to the vocabulary. Where an
architecture computes query, key and value by one fused matrix, the three roles name the same module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_lab.errors import ModelError
from lora_lab.spec import ROLES, Mask, ModelSpec, mask_name

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Roles = dict[str, tuple[str, ...]]
"""Role -> module names (or, in the table, ends of module names), in canonical order of the roles."""

_HEAD = {"head": ("lm_head",)}


def _split(attention: str, mlp: tuple[str, ...], projection: str = "o_proj") -> Roles:
    return {
        "query": (f"{attention}.q_proj",),
        "key": (f"{attention}.k_proj",),
        "value": (f"{attention}.v_proj",),
        "projection": (f"{attention}.{projection}",),
        "mlp": tuple(f"mlp.{name}" for name in mlp),
    } | _HEAD


def _fused(attention: str, qkv: str, projection: str, mlp: tuple[str, ...]) -> Roles:
    return {
        "query": (f"{attention}.{qkv}",),
        "key": (f"{attention}.{qkv}",),
        "value": (f"{attention}.{qkv}",),
        "projection": (f"{attention}.{projection}",),
        "mlp": tuple(f"mlp.{name}" for name in mlp),
    } | _HEAD


_LLAMA_LIKE = _split("self_attn", ("gate_proj", "up_proj", "down_proj"))

TABLE: Mapping[str, Roles] = {
    "llama": _LLAMA_LIKE,  # Llama 1-3, SmolLM 1-2, TinyLlama, Vicuna, …
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "gemma": _LLAMA_LIKE,
    "gemma2": _LLAMA_LIKE,
    "gemma3_text": _LLAMA_LIKE,
    "smollm3": _LLAMA_LIKE,
    "phi": _split("self_attn", ("fc1", "fc2"), projection="dense"),
    "phi3": _fused("self_attn", "qkv_proj", "o_proj", ("gate_up_proj", "down_proj")),
    "gpt2": _fused("attn", "c_attn", "c_proj", ("c_fc", "c_proj")),
    "gpt_neox": _fused("attention", "query_key_value", "dense", ("dense_h_to_4h", "dense_4h_to_h")),
}
"""``config.model_type`` -> role -> ends of module names.

The head of a loaded model is taken from the model itself (its output embeddings), whatever its name.
"""


def role_modules(model: PreTrainedModel, spec: ModelSpec) -> Roles:
    """Role -> full names of the modules that play it, in the order of the model.

    The modules are :class:`torch.nn.Linear` or transformers' ``Conv1D`` (GPT-2: the same linear map with its
    weight stored as ``(in, out)``). ``spec.roles`` replaces the table's entry role by role.

    Raises:
        ModelError: an architecture that is not in the table and has no ``model.roles`` (its linear modules are
            listed), or a name that matches no linear module.
    """
    linear = _linear_modules(model)
    by_hand = hand_roles(spec)
    kind = str(model.config.model_type)
    if kind not in TABLE and not by_hand:
        raise _unknown(spec, kind, linear)
    wanted = dict(TABLE.get(kind, {})) | by_hand
    found: Roles = {}
    for role in ROLES:
        if role == "head" and "head" not in by_hand:
            found[role] = _head(model, linear)
        elif role in wanted:
            found[role] = _matching(role, wanted[role], linear, spec)
    return {role: names for role, names in found.items() if names}


def hand_roles(spec: ModelSpec) -> Roles:
    """``spec.roles`` as role -> ends of module names.

    Raises:
        ModelError: a value that is not a list of names.
    """
    roles: Roles = {}
    for role, names in spec.roles:
        listed = (names,) if isinstance(names, str) else names
        if not isinstance(listed, tuple) or not listed or not all(isinstance(n, str) and n for n in listed):
            raise ModelError(
                f"model.roles.{role}: expected a list of module names, got {names!r}. "
                "Write it as 'model.roles={query: [q_proj], mlp: [up_proj, down_proj]}'."
            )
        roles[role] = listed
    return roles


def check_mask(roles: Mapping[str, Sequence[str]], mask: Mask, model: str) -> None:
    """Refuse a mask that ``model`` (its name, for the message) cannot carry.

    ``roles`` may hold module names or, before anything is loaded, the table's ends of names.

    Raises:
        ModelError: a role the model lacks, or some but not all roles of one fused matrix.
    """
    for role in mask:
        if not roles.get(role):
            raise ModelError(
                f"method.roles={mask_name(mask)}: model {model} has no {role!r} modules; it has "
                f"{', '.join(r for r in ROLES if roles.get(r)) or 'none'}. Drop the role, or name its modules with "
                f"'model.roles={{{role}: [MODULE]}}'."
            )
    for role in mask:
        for other in ROLES:
            shared = [name for name in roles[role] if name in roles.get(other, ())]
            if other not in mask and shared:
                group = [r for r in ROLES if shared[0] in roles.get(r, ())]
                raise ModelError(
                    f"method.roles={mask_name(mask)}: model {model} computes {', '.join(group)} by one fused matrix "
                    f"({shared[0]}), so {role} cannot carry an adapter without {other}. "
                    f"Choose all of {'+'.join(group)}, or none of them."
                )


def _linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def _head(model: PreTrainedModel, linear: Mapping[str, nn.Module]) -> tuple[str, ...]:
    head = model.get_output_embeddings()
    return tuple(name for name, module in linear.items() if module is head)


def _matching(role: str, ends: Sequence[str], linear: Mapping[str, nn.Module], spec: ModelSpec) -> tuple[str, ...]:
    for end in ends:
        if not any(_ends_with(name, end) for name in linear):
            raise ModelError(
                f"model.roles.{role}: model {spec.name} has no linear module named {end!r}. "
                f"Its linear modules: {_listing(linear)}."
            )
    return tuple(name for name in linear if any(_ends_with(name, end) for end in ends))


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _unknown(spec: ModelSpec, kind: str, linear: Mapping[str, nn.Module]) -> ModelError:
    return ModelError(
        f"model.name={spec.name}: architecture {kind!r} is not in the roles table (known: {', '.join(TABLE)}). "
        f"Its linear modules: {_listing(linear)}. "
        "Say which play which role, as in 'model.roles={query: [q_proj], value: [v_proj], mlp: [fc1, fc2]}'."
    )


def _listing(linear: Mapping[str, nn.Module]) -> str:
    """``model.layers.*.self_attn.q_proj (30x), …``: names with the layer numbers folded."""
    counts: dict[str, int] = {}
    for name in linear:
        folded = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        counts[folded] = counts.get(folded, 0) + 1
    shown = [f"{name} ({count}x)" if count > 1 else name for name, count in counts.items()]
    more = [f"and {len(shown) - 20} more"] if len(shown) > 20 else []
    return ", ".join(shown[:20] + more) or "none"
