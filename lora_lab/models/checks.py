"""Judges a base model before anything large is read: files, config, pad token, roles."""

from __future__ import annotations

from collections.abc import Iterable

from lora_lab.errors import ModelError
from lora_lab.models.gguf_header import read_header
from lora_lab.models.roles import TABLE, Roles, check_mask, role_modules
from lora_lab.models.tokenizer import BYTE_VOCABULARY, load_tokenizer, no_pad_token, unknown_pad_token
from lora_lab.models.wheel import gguf_file
from lora_lab.spec import Mask, ModelSpec


def check(spec: ModelSpec, masks: Iterable[Mask]) -> None:
    """Refuse a base model that could not be used with these masks; no weight is read.

    Raises:
        ModelError: a missing package, folder or file, an unreadable config, a tokenizer without pad token, an
            architecture whose roles are unknown, or a mask the model cannot carry.
    """
    if spec.quantization != "none":
        from lora_lab.models.quantised import bitsandbytes

        bitsandbytes()
    roles = _roles(spec, _model_type(spec))
    for mask in masks:
        check_mask(roles, mask, spec.name)


def _model_type(spec: ModelSpec) -> str:
    """The architecture, after the source's own checks."""
    if spec.source == "wheel":
        return _gguf_type(spec)
    from lora_lab.models.quantised import check_quantised
    from lora_lab.models.sources import config_of, location

    if spec.source == "random":
        config = config_of(spec)
        if config.vocab_size < BYTE_VOCABULARY:
            raise ModelError(
                f"model.config.vocab_size={config.vocab_size}: a random model reads bytes and needs "
                f"{BYTE_VOCABULARY} or more. Set model.config.vocab_size=320."
            )
        return str(config.model_type)
    location(spec)
    config = config_of(spec)
    check_quantised(config, spec)
    load_tokenizer(spec)
    return str(config.model_type)


def _gguf_type(spec: ModelSpec) -> str:
    header = read_header(gguf_file(spec))
    tokens = header.get("tokenizer.ggml.tokens", [])
    eos = header.get("tokenizer.ggml.eos_token_id")
    eos_token = tokens[eos] if eos is not None and eos < len(tokens) else None
    if spec.pad_token is None and "tokenizer.ggml.padding_token_id" not in header:
        raise no_pad_token(spec, eos_token)
    if spec.pad_token is not None and spec.pad_token not in tokens:
        raise unknown_pad_token(spec, eos_token)
    return str(header.get("general.architecture"))


def _roles(spec: ModelSpec, kind: str) -> Roles:
    """The table's word where it has one; else the model itself is built, without memory, and asked."""
    if kind in TABLE and not spec.roles:
        return TABLE[kind]
    from lora_lab.models.base import load_meta

    return role_modules(load_meta(spec), spec)
