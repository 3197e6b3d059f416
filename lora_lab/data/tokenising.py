"""From rendered examples and running text to the arrays of a :class:`~lora_lab.data.split.Split`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.data.records import Example, Passage, Record
from lora_lab.data.split import Split
from lora_lab.data.templates import render
from lora_lab.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PIECE = 1 << 20  # characters of running text given to the tokenizer at once, to bound its memory


def tokenise(
    records: Sequence[Record],
    side: str,
    template: str,
    max_length: int,
    mask_prompt: bool,
    tokenizer: PreTrainedTokenizerBase,
) -> Split:
    """Render and tokenise instructions and conversations; the end-of-sequence token follows each response.

    A prompt and its response are tokenised apart, so that the prompt's tokens are the same in training and in
    generation. What exceeds ``max_length`` tokens is cut from the end. An example with a blank response is dropped
    (its only lesson would be to say nothing), as is one that keeps no target.

    Raises:
        DataError: no example of ``side`` is left, or the tokenizer has no end-of-sequence token.
    """
    eos = end_of_sequence(tokenizer)
    rendered = [render(record, template, tokenizer) for record in records if not isinstance(record, Passage)]
    examples = [example for example in rendered if example.response.strip()]
    start = [] if template == "chat" else beginning(tokenizer)  # a chat template writes its own
    prompts = [start + ids for ids in _encode(tokenizer, [example.prompt for example in examples])]
    responses = _encode(tokenizer, [example.response for example in examples])
    kept: list[Example] = []
    rows: list[list[int]] = []
    prompt_lengths: list[int] = []
    truncated = 0
    for example, prompt, response in zip(examples, prompts, responses, strict=True):
        ids = [*prompt, *response, eos]
        length = min(len(ids), max_length)
        first_target = max(1, len(prompt)) if mask_prompt else 1
        if length <= first_target:
            continue
        truncated += length < len(ids)
        kept.append(example)
        rows.append(ids[:length])
        prompt_lengths.append(min(len(prompt), length))
    if not kept:
        longest = max(map(len, prompts), default=0)
        raise DataError(
            f"data: none of the {len(rendered)} {side} examples has a token to learn: {len(rendered) - len(examples)} "
            f"with an empty response, {len(examples)} with a prompt of data.max_length={max_length} tokens or more. "
            f"Raise data.max_length above {longest} (the longest prompt), or check the column of the responses."
        )
    return _split(
        rows,
        prompt_lengths,
        answers=[example.response for example in kept],
        tasks=[example.task for example in kept],
        mask_prompt=mask_prompt,
        truncated=truncated,
        dropped=len(rendered) - len(kept),
    )


def blocks(passages: Sequence[Passage], max_length: int, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Running text as consecutive blocks of ``max_length`` tokens; the last may be shorter.

    Passages are joined by the end-of-sequence token; a tokenizer that begins every text with a token of its own begins
    every block with it.

    Raises:
        DataError: blocks too short to hold a target, or no end-of-sequence token to join with.
    """
    start = beginning(tokenizer)
    room = max_length - len(start)
    if max_length < 2 or room < 1:
        raise DataError(f"data.max_length={max_length}: a block of text needs 2 tokens or more; raise data.max_length.")
    eos = end_of_sequence(tokenizer) if len(passages) > 1 else None
    stream: list[int] = []
    for i, passage in enumerate(passages):
        if i and eos is not None:
            stream.append(eos)
        for piece in _pieces(passage.text):
            stream.extend(_encode(tokenizer, [piece])[0])
    return [start + stream[i : i + room] for i in range(0, len(stream), room)]


def split_of_blocks(rows: Sequence[list[int]], side: str) -> Split:
    """A split of running text: every token but the first of a block is a target; a block of one token is dropped.

    Raises:
        DataError: no block of ``side`` is left.
    """
    kept = [row for row in rows if len(row) > 1]
    if not kept:
        raise DataError(
            f"data: the {side} text is too short, it has no block of 2 tokens. "
            "Give a longer text, or lower data.max_length."
        )
    nothing = [""] * len(kept)
    return _split(
        kept, [0] * len(kept), nothing, list(nothing), mask_prompt=False, truncated=0, dropped=len(rows) - len(kept)
    )


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-sequence token.

    Raises:
        DataError: the tokenizer has none, so that a model could not learn where to stop.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no end-of-sequence token, so a "
            "model could not learn where an answer ends. Set eos_token in its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token that this tokenizer puts before every text (Llama's does, SmolLM2's does not)."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return [int(ids[0])] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of what decides a tokenizer's output: vocabulary, merges, normaliser, special tokens, template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    else:
        # what stands before is truncation and padding, left over from its last call and not part of what it is
        rules = "".join(backend.to_str().partition('"added_tokens"')[1:])
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
    return hashlib.sha256(f"{rules}\n{json.dumps(special, sort_keys=True)}".encode()).hexdigest()


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return ids


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text where a line begins with a letter; byte-level tokenizers join no tokens across such a place."""
    start = 0
    while len(text) - start > _PIECE:
        end = text.find("\n", start + _PIECE) + 1
        while 0 < end < len(text) and text[end].isspace():
            end = text.find("\n", end) + 1
        if end in (0, len(text)):
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _split(
    rows: list[list[int]],
    prompt_lengths: list[int],
    answers: list[str],
    tasks: list[str],
    *,
    mask_prompt: bool,
    truncated: int,
    dropped: int,
) -> Split:
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
    return Split(
        ids, offsets, np.array(prompt_lengths, dtype=np.int32), answers, tasks, mask_prompt, truncated, dropped
    )
