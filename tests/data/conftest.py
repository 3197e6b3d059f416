"""A byte-level tokenizer made on the spot: one token a byte, so that goldens can be counted by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if loop.index0 and message['role'] == messages[loop.index0 - 1]['role'] %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(*, bos: bool = False, merge_newlines: bool = False, **overrides: Any) -> PreTrainedTokenizerFast:
    """256 bytes and the specials ``<pad> <bos> <eos> <|im_start|> <|im_end|>`` (ids 256 to 260, or one higher)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, "ĊĊ"] if merge_newlines else alphabet
    merges = [("Ċ", "Ċ")] if merge_newlines else []
    inner = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(vocabulary)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"])
    if bos:
        from tokenizers.processors import TemplateProcessing

        inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 257)])
    settings: dict[str, Any] = {
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 64,
    }
    return PreTrainedTokenizerFast(tokenizer_object=inner, **(settings | overrides))


@pytest.fixture(scope="session")
def make_tokenizer() -> Any:
    return byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data files, named by the environment."""
    folder = os.environ.get("LORA_LAB_DATA")
    if not folder:
        pytest.skip("LORA_LAB_DATA does not name a folder with the public data files (alpaca_5k.json, ...)")
    return Path(folder)
